//! A certificate authority and a certificate of its own making, to try TLS with.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::{private, TlsFiles};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Clocks of machines differ.
const VALID_BEFORE: Duration = DAY;
const VALID_AFTER: Duration = Duration::from_secs(365 * DAY.as_secs());

/// Make `ca.pem`, `cert.pem` and `key.pem` in `folder`, for all processes of a cluster that runs on these hosts (names or IP
/// addresses), or on this machine. They are valid for a year, and nothing is overwritten. The CA's own key is not kept, so
/// nobody can make another certificate that this cluster would trust.
pub fn make_certificates(folder: &Path, hosts: &[String]) -> io::Result<TlsFiles> {
    let files = TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem"), ca: folder.join("ca.pem") };
    let made = generate(hosts).map_err(|error| io::Error::other(format!("no certificate can be made: {error}")))?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| private::name(folder, error))?;
    if let Some(there) = [&files.cert, &files.key, &files.ca].into_iter().find(|path| path.exists()) {
        let why = "is there already and is not overwritten; name another folder";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} {why}", there.display())));
    }
    private::write_new(&files.ca, made.ca.as_bytes())?;
    private::write_new(&files.cert, made.cert.as_bytes())?;
    private::write_new(&files.key, made.key.as_bytes())?;
    Ok(files)
}

/// As PEM.
struct Made {
    ca: String,
    cert: String,
    key: String,
}

fn generate(hosts: &[String]) -> Result<Made, rcgen::Error> {
    let ca = CertifiedIssuer::self_signed(authority()?, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let cert = process(hosts)?.signed_by(&key, &ca)?;
    Ok(Made { ca: ca.pem(), cert: cert.pem(), key: key.serialize_pem() })
}

fn authority() -> Result<CertificateParams, rcgen::Error> {
    let mut params = named("rustdask cluster CA", Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// Each process both opens connections and accepts them.
fn process(hosts: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let here = ["localhost", "127.0.0.1", "::1"].map(String::from);
    let mut params = named("rustdask cluster", hosts.iter().cloned().chain(here).collect())?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn named(name: &str, hosts: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts)?;
    let now = SystemTime::now();
    params.not_before = (now - VALID_BEFORE).into();
    params.not_after = (now + VALID_AFTER).into();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Tls;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn certificates_are_made_once_and_only_their_owner_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let files = make_certificates(&folder, &["head".into(), "10.0.0.1".into()]).unwrap();
        Tls::load(&files).unwrap();
        for path in [&files.ca, &files.cert, &files.key] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let before = std::fs::read(&files.key).unwrap();
        let error = make_certificates(&folder, &[]).unwrap_err();
        assert!(error.to_string().contains("cert.pem is there already"), "{error}");
        assert_eq!(std::fs::read(&files.key).unwrap(), before);
    }

    #[test]
    fn files_that_do_not_fit_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let one = make_certificates(&folder.path().join("one"), &[]).unwrap();
        let two = make_certificates(&folder.path().join("two"), &[]).unwrap();
        let missing = folder.path().join("missing.pem");
        for (files, why) in [
            (TlsFiles { key: two.key.clone(), ..one.clone() }, "cert.pem: the certificate, or the key in"),
            (TlsFiles { cert: one.key.clone(), ..one.clone() }, "key.pem: there is no certificate in it"),
            (TlsFiles { key: one.cert.clone(), ..one.clone() }, "cert.pem: there is no private key in it"),
            (TlsFiles { ca: missing, ..one.clone() }, "missing.pem: No such file"),
        ] {
            let error = Tls::load(&files).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
