//! An authority, and what it certifies: a server at 127.0.0.1 and a client.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

const CONFIGURATION: &str = "\
[req]
distinguished_name = name
prompt = no
[name]
CN = replaced
[ca]
basicConstraints = critical, CA:TRUE
[leaf]
basicConstraints = critical, CA:FALSE
subjectAltName = IP:127.0.0.1
";

/// Certificates and their keys, for as long as a test takes.
#[derive(Debug)]
pub struct Certificates(TempDir);

impl Certificates {
    /// Makes them.
    ///
    /// # Errors
    /// When openssl does not.
    pub fn make() -> Result<Self> {
        let certificates = Self(tempfile::tempdir()?);
        fs::write(certificates.file("configuration"), CONFIGURATION)?;
        certificates.certify("ca", "ca", &[])?;
        let (ca, key) = (certificates.file("ca.pem"), certificates.file("ca.key"));
        let by = [
            "-CA".as_ref(),
            ca.as_os_str(),
            "-CAkey".as_ref(),
            key.as_os_str(),
        ];
        for name in ["server", "client"] {
            certificates.certify(name, "leaf", &by)?;
        }
        Ok(certificates)
    }

    /// A file of it: `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn certify(&self, name: &str, extensions: &str, by: &[&OsStr]) -> Result<()> {
        // An authority is looked for by its name, and two of one name would be taken for each other.
        let directory = self
            .0
            .path()
            .file_name()
            .context("a directory has a name")?;
        let subject = format!("/CN={name} of {}", directory.display());
        let output = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"])
            .args(["-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-subj", &subject, "-extensions", extensions, "-config"])
            .arg(self.file("configuration"))
            .arg("-keyout")
            .arg(self.file(&format!("{name}.key")))
            .arg("-out")
            .arg(self.file(&format!("{name}.pem")))
            .args(by)
            .output()
            .context("openssl makes certificates: `cargo xtask setup` installs it")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "openssl: {said}");
        Ok(())
    }
}
