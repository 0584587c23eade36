use std::sync::Arc;

use rustdask_cluster::transport::{connect, make_certificates, Address, Listener, Port, Security, Tls, Token};
use tempfile::tempdir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{pem::PemObject, CertificateDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::{listen, meet, part, with_tls, with_token, LIMIT};

#[tokio::test]
async fn certificates_of_one_ca_open_a_connection_with_or_without_a_token() {
    let folder = tempdir().unwrap();
    let mut security = with_tls(folder.path());
    for token in [None, Some(Token::random().unwrap())] {
        security.token = token;
        let mut listener = listen(&security).await;
        let address = listener.address();
        assert!(address.tls);
        let (opened, accepted) = meet(&mut listener, &address, &security).await;
        let (mut opened, mut accepted) = (opened.unwrap(), accepted.unwrap());
        opened.write_from(b"hello").await.unwrap();
        let mut read = [0; 5];
        accepted.read_into(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
    }
}

#[tokio::test]
async fn a_token_is_asked_for_within_tls_too() {
    let folder = tempdir().unwrap();
    let tls = with_tls(folder.path()).tls;
    let with = |token| Security { token, tls: tls.clone() };
    let mut listener = listen(&with(with_token().token)).await;
    let address = listener.address();
    part(&mut listener, &address, &with(with_token().token), ["it has another token"; 2]).await;
    part(&mut listener, &address, &with(None), ["it wants a token", "it has no token"]).await;
}

#[tokio::test]
async fn certificates_of_another_ca_do_not() {
    let folders = [tempdir().unwrap(), tempdir().unwrap()];
    let [ours, theirs] = folders.each_ref().map(|folder| with_tls(folder.path()));
    let mut listener = listen(&ours).await;
    let address = listener.address();
    let whys = ["its certificate is not good here", "it does not take the certificate of this process"];
    part(&mut listener, &address, &theirs, whys).await;
}

#[tokio::test]
async fn a_client_whose_certificate_is_unknown_is_refused() {
    let folders = [tempdir().unwrap(), tempdir().unwrap()];
    let [ours, theirs] = folders.each_ref().map(|folder| make_certificates(folder.path(), &[]).unwrap());
    let mixed = rustdask_cluster::transport::TlsFiles { ca: ours.ca.clone(), ..theirs };
    let [ours, mixed] = [ours, mixed].map(|files| Security { token: None, tls: Some(Tls::load(&files).unwrap()) });
    let mut listener = listen(&ours).await;
    let address = listener.address();
    let whys = ["it does not take the certificate of this process", "its certificate is not good here"];
    part(&mut listener, &address, &mixed, whys).await;
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let folder = tempdir().unwrap();
    let files = make_certificates(folder.path(), &[]).unwrap();
    let security = Security { token: None, tls: Some(Tls::load(&files).unwrap()) };
    let mut listener = listen(&security).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(listener.local()).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let attempt = async {
        // In TLS 1.3 a client finds out when it reads.
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        stream.read_u8().await
    };
    let (attempt, accepted) = tokio::join!(attempt, listener.accept());
    assert!(attempt.unwrap_err().to_string().contains("CertificateRequired"));
    let refused = accepted.err().expect("it is refused");
    assert!(refused.0.contains("it has no certificate"), "{refused}");
}

#[tokio::test]
async fn a_certificate_is_good_for_its_hosts_alone() {
    let folder = tempdir().unwrap();
    let security = with_tls(folder.path());
    let mut listener = Listener::bind("127.0.0.2", Port::Exactly(0), security.clone()).await.unwrap();
    let address = listener.address();
    let whys = ["its certificate is not good here", "it does not take the certificate of this process"];
    part(&mut listener, &address, &security, whys).await;
}

#[tokio::test]
async fn those_who_come_without_tls_are_told_to_use_it() {
    let folder = tempdir().unwrap();
    let mut listener = listen(&with_tls(folder.path())).await;
    let plain = Address { tls: false, ..listener.address() };
    part(&mut listener, &plain, &Security::default(), ["use a tls:// address", "it came without TLS"]).await;
    part(&mut listener, &plain, &with_token(), ["use a tls:// address", "it came without TLS"]).await;
}

#[tokio::test]
async fn those_who_come_with_tls_where_there_is_none_are_told_too() {
    let folder = tempdir().unwrap();
    let mut listener = listen(&with_token()).await;
    let tls = Address { tls: true, ..listener.address() };
    let whys = ["it does not speak TLS", "it came with TLS, which is not used here"];
    part(&mut listener, &tls, &with_tls(folder.path()), whys).await;
}

#[tokio::test]
async fn certificates_are_never_left_unused() {
    let folder = tempdir().unwrap();
    let [plain, tls] = [false, true].map(|tls| Address { tls, host: "127.0.0.1".into(), port: 1 });
    for (address, security, why) in [
        (plain, with_tls(folder.path()), "use a tls:// address"),
        (tls, with_token(), "needs certificates (--tls-cert"),
    ] {
        let error = connect(&address, &security, LIMIT).await.err().expect("it is refused");
        assert!(error.to_string().contains(why), "{error}");
    }
}
