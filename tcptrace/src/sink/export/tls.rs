//! TLS to a destination: whom it is trusted to be, who this host is, and the bytes that go over the socket.

use std::fmt;
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore};

use super::link::hear;

/// How long a server may take to say that it does not want this client, once it has agreed on a
/// connection.
const VERDICT: Duration = Duration::from_secs(1);

/// What every connection trusts and shows. It is read once: whoever delivers can open no file.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

impl Tls {
    /// For a connection over which this is spoken, as ALPN names it.
    pub(super) fn for_protocol(&self, name: &[u8]) -> ClientConfig {
        let mut config = ClientConfig::clone(&self.0);
        config.alpn_protocols = vec![name.to_vec()];
        config
    }
}

/// Says nothing of the key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Trusts servers with a certificate from those in the file `ca`, and no others. With an `identity`
    /// it shows the certificate, and those between it and its issuer, in the first file, whose key is in
    /// the second. All are PEM.
    ///
    /// # Errors
    /// A file cannot be read or is of something else, or this processor is too old.
    pub fn read(ca: &Path, identity: Option<(&Path, &Path)>) -> Result<Self> {
        let missing = missing_from_processor();
        ensure!(
            missing.is_empty(),
            "TLS needs what this processor lacks: {}; send to an agent on this host instead",
            missing.join(", ")
        );
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca).with_context(|| of("ca", ca))? {
            roots.add(certificate).with_context(|| of("ca", ca))?;
        }
        let provider = Arc::new(rustls_graviola::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate).with_context(|| of("cert", certificate))?;
                let secret = PrivateKeyDer::from_pem_file(key).with_context(|| of("key", key))?;
                config
                    .with_client_auth_cert(chain, secret)
                    .with_context(|| of("key", key))?
            }
        };
        // A server that asks for certificates may be unable to resume, and call that an internal error.
        // <https://docs.openssl.org/3.0/man3/SSL_CTX_set_session_id_context/>
        config.resumption = Resumption::disabled();
        Ok(Self(Arc::new(config)))
    }
}

fn of(option: &str, path: &Path) -> String {
    format!("--tls-{option} {}", path.display())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
    ensure!(
        !certificates.is_empty(),
        "there is no certificate in it; name a file in PEM, which has BEGIN CERTIFICATE in it"
    );
    Ok(certificates)
}

/// What the ciphers are written for, and would panic without.
/// <https://github.com/ctz/graviola/blob/v/0.4.4/README.md#limitations>
fn missing_from_processor() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("aes", is_x86_feature_detected!("aes")),
        ("ssse3", is_x86_feature_detected!("ssse3")),
        ("avx", is_x86_feature_detected!("avx")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("adx", is_x86_feature_detected!("adx")),
        ("bmi2", is_x86_feature_detected!("bmi2")),
        ("pclmulqdq", is_x86_feature_detected!("pclmulqdq")),
    ];
    #[cfg(target_arch = "aarch64")]
    let features = [
        ("aes", std::arch::is_aarch64_feature_detected!("aes")),
        ("sha2", std::arch::is_aarch64_feature_detected!("sha2")),
        ("pmull", std::arch::is_aarch64_feature_detected!("pmull")),
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
    ];
    let missing = features.into_iter().filter(|&(_, is_there)| !is_there);
    missing.map(|(name, _)| name).collect()
}

/// The TLS of one connection. Dropping it says goodbye.
pub(super) struct Session {
    connection: ClientConnection,
    socket: TcpStream,
}

impl Session {
    /// Agrees with the server of this name, each of whose answers may take `patience`.
    pub(super) fn open(
        tls: &Tls,
        name: &str,
        socket: &TcpStream,
        patience: Duration,
    ) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let connection =
            ClientConnection::new(Arc::clone(&tls.0), name).map_err(io::Error::other)?;
        let mut session = Self {
            connection,
            socket: socket.try_clone()?,
        };
        socket.set_write_timeout(Some(patience))?;
        socket.set_read_timeout(Some(patience))?;
        while session.connection.is_handshaking() {
            session
                .connection
                .complete_io(&mut session.socket)
                .map_err(|error| match error.kind() {
                    io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
                    _ => error,
                })?;
        }
        socket.set_read_timeout(Some(VERDICT))?;
        session.hear_verdict()?;
        Ok(session)
    }

    /// By TLS 1.3 a server sees this host's certificate only when all is agreed on for this end. It then
    /// sends a ticket, or says why it goes. Before that its kernel acknowledges what nobody will read.
    fn hear_verdict(&mut self) -> io::Result<()> {
        let tells_late = self.connection.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        while tells_late && self.connection.tls13_tickets_received() == 0 {
            match self.connection.read_tls(&mut self.socket) {
                Ok(0) => return Err(closed()),
                Ok(_) => process(&mut self.connection)?,
                // There are servers that have no tickets.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Adds what these bytes are on the wire.
    pub(super) fn seal(&mut self, plain: &[u8], to: &mut Vec<u8>) -> io::Result<()> {
        self.connection.writer().write_all(plain)?;
        while self.connection.wants_write() {
            self.connection.write_tls(to)?;
        }
        Ok(())
    }

    /// Takes what the server has said meanwhile: mostly nothing, or that it goes.
    pub(super) fn hear(&mut self) -> io::Result<()> {
        let connection = &mut self.connection;
        hear(self.socket.as_fd(), |mut heard| {
            while !heard.is_empty() {
                connection.read_tls(&mut heard)?;
                process(connection)?;
            }
            Ok(())
        })?;
        // That it goes may have been heard before.
        process(connection)
    }
}

fn process(connection: &mut ClientConnection) -> io::Result<()> {
    let state = connection.process_new_packets().map_err(io::Error::other)?;
    // Nobody is expected to talk here, but what is not taken would fill the memory.
    let mut unread = state.plaintext_bytes_to_read();
    let mut buffer = [0; 1024];
    while unread > 0 {
        unread -= io::Read::read(&mut connection.reader(), &mut buffer)?.min(unread);
    }
    if state.peer_has_closed() {
        return Err(closed());
    }
    Ok(())
}

impl Drop for Session {
    fn drop(&mut self) {
        // Who has gone would answer with a reset.
        if self.hear().is_err() {
            return;
        }
        self.connection.send_close_notify();
        let mut goodbye = Vec::new();
        while self.connection.wants_write() {
            // Memory takes all.
            let _ = self.connection.write_tls(&mut goodbye);
        }
        // Who goes meanwhile does not hear it.
        let _ = self.socket.write_all(&goodbye);
    }
}

pub(super) fn closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the connection was closed by the other end",
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_something_else_is_named_with_the_option() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("the directory is ours");
            path
        };
        let absent = directory.path().join("absent");
        let empty = file("empty", "");
        let broken = file(
            "broken",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        );
        for (path, why) in [
            (&absent, "No such file"),
            (&empty, "there is no certificate in it"),
            (&broken, "invalid peer certificate"),
        ] {
            let error = Tls::read(path, None).expect_err("it is no certificate");
            let error = format!("{error:#}");
            let option = format!("--tls-ca {}", path.display());
            assert!(error.starts_with(&option) && error.contains(why), "{error}");
        }
    }
}
