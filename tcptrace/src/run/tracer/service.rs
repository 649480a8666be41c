//! What the service manager is told: that tracing has begun, that it goes on, what the counts are.
//! <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>

use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use sd_notify::NotifyState;

/// How often the counts are told.
const STATUS: Duration = Duration::from_secs(1);

/// The service manager, where one waits to be told. Its socket is opened once: later no thread can open
/// one.
#[derive(Debug)]
pub(super) struct Service {
    socket: Option<UnixDatagram>,
    /// It takes silence this long for a standstill.
    watchdog: Option<Duration>,
    alive: Instant,
    told: Instant,
    status: String,
}

impl Service {
    /// The one the environment names.
    ///
    /// # Errors
    /// It names one that is not there.
    pub(super) fn from_env() -> Result<Self> {
        let socket = env::var_os("NOTIFY_SOCKET")
            .map(|name| connect(&name).with_context(|| format!("NOTIFY_SOCKET {}", name.display())))
            .transpose()?;
        let now = Instant::now();
        Ok(Self {
            socket,
            watchdog: sd_notify::watchdog_enabled(),
            alive: now,
            told: now,
            status: String::new(),
        })
    }

    /// Events are traced, or again after [`reloading`](Self::reloading).
    pub(super) fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The configuration is read again.
    pub(super) fn reloading(&self) {
        // systemd measures the reload from here; without a clock there is no reload to measure.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.tell(&[NotifyState::Reloading, now]);
        }
    }

    /// Tracing has ended; what is left is accounted for.
    pub(super) fn stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    /// The loop came round: says so in time for the watchdog, and what has changed.
    pub(super) fn tend(&mut self, status: impl FnOnce() -> String) {
        if self.socket.is_none() {
            return;
        }
        if let Some(watchdog) = self.watchdog
            && self.alive.elapsed() >= watchdog / 2
        {
            self.alive = Instant::now();
            self.tell(&[NotifyState::Watchdog]);
        }
        if self.told.elapsed() >= STATUS {
            self.told = Instant::now();
            let status = status();
            if status != self.status {
                self.tell(&[NotifyState::Status(&status)]);
                self.status = status;
            }
        }
    }

    fn tell(&self, states: &[NotifyState]) {
        let Some(socket) = &self.socket else { return };
        let mut message = String::new();
        for state in states {
            // A String takes all.
            let _ = writeln!(message, "{state}");
        }
        // A manager that does not read is told again at the next turn.
        let _ = socket.send(message.as_bytes());
    }
}

/// A path, or a name without a file that begins with `@`.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_hears_of_each_state_and_of_the_watchdog_in_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        manager.set_nonblocking(true).expect("it is ours");
        let hear = || {
            let mut message = [0; 256];
            let length = manager.recv(&mut message).ok()?;
            Some(String::from_utf8_lossy(&message[..length]).into_owned())
        };
        let past = Instant::now()
            .checked_sub(Duration::from_secs(16))
            .expect("a past");
        let mut service = Service {
            socket: Some(connect(path.as_os_str()).expect("it is there")),
            watchdog: Some(Duration::from_secs(30)),
            alive: past,
            told: past,
            status: String::new(),
        };
        service.ready("tracing");
        assert_eq!(hear().as_deref(), Some("READY=1\nSTATUS=tracing\n"));
        service.tend(|| "3 events".to_owned());
        assert_eq!(hear().as_deref(), Some("WATCHDOG=1\n"));
        assert_eq!(hear().as_deref(), Some("STATUS=3 events\n"));
        service.tend(|| "4 events".to_owned());
        assert_eq!(hear(), None, "not yet");
        service.reloading();
        let reloading = hear().expect("told");
        let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(
            usec.is_some_and(|usec| usec.trim().parse::<u64>().is_ok()),
            "{reloading}"
        );
        service.stopping();
        assert_eq!(hear().as_deref(), Some("STOPPING=1\nSTATUS=stopping\n"));
    }
}
