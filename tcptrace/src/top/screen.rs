//! The thread that draws and reads the keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::{Signal, raise};
use tokio::sync::Notify;

use super::draw::{Title, draw};
use super::keys::Keys;
use super::model::View;
use super::theme::Theme;
use super::ui::{Action, Ui};
use super::{Shared, terminal};

/// What has changed is drawn at most this often; what a key changes, at once.
const PERIOD: Duration = Duration::from_millis(250);
/// What belongs to one key comes within this time, also over a slow line.
const PIECES: Duration = Duration::from_millis(50);
/// A terminal that takes nothing is left to itself after this long.
const PATIENCE: Duration = Duration::from_millis(600);

/// What the two threads tell each other.
#[derive(Debug, Default)]
struct Signs {
    /// The screen is to end.
    over: AtomicBool,
    /// The process is to stop until it is continued.
    suspend: AtomicBool,
    /// It was continued: somebody else may have had the terminal.
    again: AtomicBool,
    /// What is shown stands still.
    paused: AtomicBool,
    /// Somebody at the keys wants no more, or there is no screen any more.
    quit: Notify,
}

/// A screen on its thread. Dropping it gives the terminal back.
#[derive(Debug)]
pub struct Screen {
    signs: Arc<Signs>,
    ended: Receiver<Result<()>>,
}

/// Tells that the thread ends, however it does.
struct Ending(Arc<Signs>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.quit.notify_one();
    }
}

impl Screen {
    /// Takes the terminal over and shows this view. The thread begins with `confine`.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn start(
        shared: Shared,
        title: Title,
        theme: Theme,
        confine: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let signs = Arc::new(Signs::default());
        let (tell, ended) = mpsc::sync_channel(1);
        let of_thread = Arc::clone(&signs);
        let show = move || {
            let ending = Ending(Arc::clone(&of_thread));
            let shown = confine().and_then(|()| show(&shared, &title, theme, &of_thread));
            terminal::restore();
            // Nobody may wait for it any more.
            let _ = tell.send(shown);
            drop(ending);
        };
        thread::Builder::new()
            .name("screen".into())
            .spawn(show)
            .context("no thread to draw")?;
        Ok(Self { signs, ended })
    }

    /// Waits until somebody at the keys wants no more.
    pub async fn quit(&self) {
        self.signs.quit.notified().await;
    }

    /// Gives the terminal back and stops the process, as SIGTSTP would without a handler.
    pub fn suspend(&self) {
        self.signs.suspend.store(true, Ordering::SeqCst);
    }

    /// The process was continued, by whomever: takes the terminal anew.
    pub fn again(&self) {
        self.signs.again.store(true, Ordering::SeqCst);
    }

    /// What is shown stands still.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.signs.paused.load(Ordering::Relaxed)
    }

    /// Gives the terminal back.
    ///
    /// # Errors
    /// What ended the screen before.
    pub fn close(self) -> Result<()> {
        self.signs.over.store(true, Ordering::SeqCst);
        let ended = self.ended.recv_timeout(PATIENCE);
        terminal::restore();
        match ended {
            Ok(ended) => ended,
            // The terminal takes nothing, and is as it was as far as can be.
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(()),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(anyhow!("the screen ended by a panic"))
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.signs.over.store(true, Ordering::SeqCst);
        terminal::restore();
    }
}

fn show(shared: &Shared, title: &Title, theme: Theme, signs: &Signs) -> Result<()> {
    let mut terminal = terminal::take()?;
    let (mut ui, mut keys) = (Ui::default(), Keys::default());
    // What is shown while it stands still.
    let mut still: Option<View> = None;
    let mut drawn: Option<Instant> = None;
    let mut size = terminal.size()?;
    loop {
        if signs.over.load(Ordering::SeqCst) {
            break;
        }
        if signs.suspend.swap(false, Ordering::SeqCst) {
            suspend()?;
            signs.again.store(true, Ordering::SeqCst);
        }
        if signs.again.swap(false, Ordering::SeqCst) {
            // The shell may have set the terminal's modes, and restored those it keeps for us.
            terminal::restore();
            terminal = terminal::take()?;
            drawn = None;
        }
        let now_sized = terminal.size()?;
        if now_sized != size {
            (size, drawn) = (now_sized, None);
        }
        let due = drawn.is_none_or(|drawn| drawn.elapsed() >= PERIOD);
        if due && (drawn.is_none() || still.is_none() && shared.lock().changed) {
            let Some(held) = terminal::hold() else { break };
            // The terminal gets it after this, when nobody is kept from the view any more.
            terminal.draw(|frame| {
                if let Some(view) = &still {
                    return draw(frame, view, &mut ui, title, theme);
                }
                let mut view = shared.lock();
                draw(frame, &view, &mut ui, title, theme);
                view.changed = false;
            })?;
            drop(held);
            drawn = Some(Instant::now());
        }
        let left = drawn.map_or(Duration::ZERO, |drawn| {
            PERIOD.saturating_sub(drawn.elapsed())
        });
        // Nothing to draw: whatever comes, comes in time.
        let left = if left.is_zero() { PERIOD } else { left };
        let left = if keys.waits() { left.min(PIECES) } else { left };
        let Some(bytes) = terminal::read(left)? else {
            break;
        };
        let pressed = if bytes.is_empty() {
            Vec::from_iter(keys.give_up())
        } else {
            keys.take(&bytes)
        };
        for key in pressed {
            let action = match &still {
                Some(view) => ui.key(key, view),
                None => ui.key(key, &shared.lock()),
            };
            match action {
                Action::Quit => signs.quit.notify_one(),
                Action::Suspend => signs.suspend.store(true, Ordering::SeqCst),
                Action::Draw => drawn = None,
                Action::Nothing => {}
            }
        }
        if ui.paused != still.is_some() {
            still = ui.paused.then(|| shared.lock().clone());
            signs.paused.store(ui.paused, Ordering::Relaxed);
            drawn = None;
        }
    }
    Ok(())
}

/// Gives the terminal back and stops the process until somebody continues it.
fn suspend() -> Result<()> {
    terminal::restore();
    // SIGTSTP has a handler; this one nobody can have.
    raise(Signal::SIGSTOP).context("the process cannot be stopped")
}
