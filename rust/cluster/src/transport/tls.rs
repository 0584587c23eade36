//! Mutual TLS 1.3: both sides have a certificate that one CA has signed.
//!
//! Nothing is resumed, so each connection has its certificates checked.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use rustls::client::Resumption;
use rustls::crypto::{ring, CryptoProvider};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::private;

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those between it and the CA's, if there are any.
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

/// What was in [`TlsFiles`], ready for use.
#[derive(Clone)]
pub struct Tls {
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) connector: TlsConnector,
}

impl Tls {
    pub fn load(files: &TlsFiles) -> io::Result<Self> {
        let chain = certificates(&files.cert)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unread(&files.key, "private key", error))?;
        let roots = Arc::new(roots(&files.ca)?);
        let unfit = |error| {
            invalid(&files.cert, &format!("the certificate, or the key in {}, is unfit: {error}", files.key.display()))
        };
        let server = server(roots.clone(), chain.clone(), key.clone_key()).map_err(unfit)?;
        let client = client(roots, chain, key).map_err(unfit)?;
        Ok(Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(..)")
    }
}

fn server(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(path: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| invalid(path, &format!("no CA can be made of it: {error}")))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(found) if found.is_empty() => Err(unread(path, "certificate", pem::Error::NoItemsFound)),
        found => found.map_err(|error| unread(path, "certificate", error)),
    }
}

fn unread(path: &Path, what: &str, error: pem::Error) -> io::Error {
    match error {
        pem::Error::Io(error) => private::name(path, error),
        pem::Error::NoItemsFound => invalid(path, &format!("there is no {what} in it, as PEM")),
        other => invalid(path, &other.to_string()),
    }
}

fn invalid(path: &Path, why: &str) -> io::Error {
    private::name(path, io::Error::new(io::ErrorKind::InvalidData, why))
}

/// Why a peer is no party to TLS, in words for people. `None`: the error is of the link.
pub(crate) fn reason(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidMessage(_) => "it does not speak TLS".into(),
        rustls::Error::NoCertificatesPresented => "it has no certificate".into(),
        rustls::Error::InvalidCertificate(why) => format!("its certificate is not good here: {why}"),
        rustls::Error::AlertReceived(alert) => format!("it does not take the certificate of this process ({alert:?})"),
        other => format!("TLS with it failed: {other}"),
    })
}
