//! A terminal for programs that draw: tmux holds it, and says what is on it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::wait_until;

/// A terminal with a shell script in it. Dropping it ends both.
#[derive(Debug)]
pub struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// Of this size, running a script of sh(1). `directory` is for what tmux and the script need.
    ///
    /// # Errors
    /// There is no tmux.
    pub fn start(directory: &Path, (width, height): (u16, u16), script: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let terminal = Self {
            socket: directory.join(format!("tmux-{count}")),
        };
        let (width, height) = (width.to_string(), height.to_string());
        let size = ["-x", &width, "-y", &height];
        terminal.tmux(&[&["new-session", "-d"], &size[..], &[script]].concat())?;
        Ok(terminal)
    }

    /// Waits until this holds of the lines on it.
    ///
    /// # Errors
    /// When it does not soon, with what is on it instead.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&str) -> bool) -> Result<String> {
        let mut screen = String::new();
        let waited = wait_until(what, || {
            screen = self.screen().map_err(std::io::Error::other)?;
            Ok(holds(&screen))
        });
        waited.with_context(|| format!("instead of {what} there is\n{screen}"))?;
        Ok(screen)
    }

    /// The lines on it.
    ///
    /// # Errors
    /// It is over.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Presses keys, by tmux's names: `Enter`, `Down`, `q`.
    ///
    /// # Errors
    /// It is over.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// Gives it another size.
    ///
    /// # Errors
    /// It is over.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        let (width, height) = (width.to_string(), height.to_string());
        self.tmux(&["resize-window", "-x", &width, "-y", &height])
            .map(drop)
    }

    /// Whether the alternate screen is shown, and the cursor.
    ///
    /// # Errors
    /// It is over.
    pub fn modes(&self) -> Result<(bool, bool)> {
        let modes = self.tmux(&["display-message", "-p", "#{alternate_on}#{cursor_flag}"])?;
        let is_on = |range: Range<usize>| modes.get(range) == Some("1");
        Ok((is_on(0..1), is_on(1..2)))
    }

    fn tmux(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("tmux")
            .args(["-u", "-f", "/dev/null", "-S"])
            .arg(&self.socket)
            .args(args)
            .env_remove("TMUX")
            .output()
            .context("cannot start tmux: `cargo xtask setup` installs what the tests start")?;
        ensure!(
            output.status.success(),
            "tmux {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may be over already.
        let _ = self.tmux(&["kill-server"]);
    }
}
