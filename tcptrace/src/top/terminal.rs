//! The terminal: taken over for the screen, and given back as it was however the program ends, short of
//! SIGKILL, which nobody can answer.

use std::io::{self, BufWriter, IsTerminal as _, Stdout};
use std::os::fd::AsFd as _;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::Command;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

/// What draws on it: a whole screen goes out in one write.
pub(super) type Backend = CrosstermBackend<BufWriter<Stdout>>;

/// The terminal is ours.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// Held while it is drawn on.
static DRAWN_ON: Mutex<()> = Mutex::new(());
/// A draw that takes longer waits for a terminal that takes nothing.
const PATIENCE: Duration = Duration::from_millis(100);

/// Standard input and output are a terminal.
///
/// # Errors
/// One of them is none, with the remedy.
pub fn check() -> Result<()> {
    ensure!(
        io::stdin().is_terminal() && io::stdout().is_terminal(),
        "top draws on a terminal, and standard input or output is none; without one `tcptrace` \
         alone prints each event"
    );
    Ok(())
}

/// Takes the terminal over. From now on a panic, of whatever thread, gives it back before it is told.
pub(super) fn take() -> Result<ratatui::Terminal<Backend>> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            restore();
            told(panic);
        }));
    });
    enable_raw_mode().context("the terminal does not take keys one by one")?;
    TAKEN.store(true, Ordering::SeqCst);
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout());
    execute!(out, EnterAlternateScreen, Hide)?;
    let mut terminal = ratatui::Terminal::new(CrosstermBackend::new(out))?;
    terminal.clear()?;
    Ok(terminal)
}

/// Nothing is given back while this is held.
pub(super) fn hold() -> Option<MutexGuard<'static, ()>> {
    let held = DRAWN_ON.lock().unwrap_or_else(PoisonError::into_inner);
    TAKEN.load(Ordering::SeqCst).then_some(held)
}

/// Gives the terminal back as it was. Does nothing where it was never taken, or a second time.
pub fn restore() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    // The thread that draws may be the one that panics, and hold it; or wait for the terminal.
    let mut held = DRAWN_ON.try_lock();
    for _ in 0..10 {
        if held.is_ok() {
            break;
        }
        thread::sleep(PATIENCE / 10);
        held = DRAWN_ON.try_lock();
    }
    // Standard output's own lock may be held as well, so it is written to directly, and not at all where
    // nothing is taken any more.
    let out = io::stdout();
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::ZERO);
    let mut takes = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut takes, patience).is_ok_and(|ready| ready > 0) {
        let mut end = String::new();
        // Writing to a String does not fail, and a terminal that is gone needs nothing.
        let _ = Show.write_ansi(&mut end);
        let _ = LeaveAlternateScreen.write_ansi(&mut end);
        let _ = nix::unistd::write(out.as_fd(), end.as_bytes());
    }
    let _ = disable_raw_mode();
}

/// What the keys wrote within this time, empty when it was nothing; `None`: the terminal is gone.
pub(super) fn read(patience: Duration) -> Result<Option<Vec<u8>>> {
    let input = io::stdin();
    let mut ready = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
    match poll(&mut ready, patience) {
        Ok(0) | Err(Errno::EINTR) => return Ok(Some(Vec::new())),
        Ok(_) => {}
        Err(error) => return Err(error).context("the keys cannot be waited for"),
    }
    let mut bytes = vec![0; 256];
    match nix::unistd::read(input.as_fd(), &mut bytes) {
        Ok(0) | Err(Errno::EIO) => Ok(None),
        Ok(len) => {
            bytes.truncate(len);
            Ok(Some(bytes))
        }
        Err(Errno::EINTR | Errno::EAGAIN) => Ok(Some(Vec::new())),
        Err(error) => Err(error).context("the keys cannot be read"),
    }
}
