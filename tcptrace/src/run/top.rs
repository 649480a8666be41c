//! `tcptrace top`: a trace, or recordings at their own pace, on the screen.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use super::replay::{Pace, play};
use super::{Failure, is_colored, tracer};
use crate::cli::{Recorded, Top};
use crate::config::Selection;
use crate::event::Timestamp;
use crate::sink::text::printable;
use crate::sink::{Format, Outputs};
use crate::top::{Screen, Shared, Theme, Title, View, check};

/// A screen that is not there yet.
pub(super) struct OnScreen {
    pub(super) shared: Shared,
    pub(super) title: Title,
    pub(super) theme: Theme,
}

/// `tcptrace top`.
pub(super) fn top(mut args: Top) -> Result<u8, Failure> {
    if let Some(option) = args.misplaced() {
        return Err(Failure::usage(anyhow!(
            "{option} says nothing to `tcptrace top`: leave it out, or trace without a screen"
        )));
    }
    check().map_err(Failure::usage)?;
    // What is said on standard error would be drawn over.
    args.trace.quiet = true;
    let replayed = !args.replay.is_empty();
    let on_screen = OnScreen {
        shared: Shared::default(),
        title: Title::new(
            if replayed {
                of_recordings(&args)
            } else {
                of_host()
            },
            replayed,
        ),
        theme: Theme::of(is_colored(args.trace.color)),
    };
    if replayed {
        replay(args, on_screen)
    } else {
        tracer::trace(&args.trace, None, Some(on_screen))
    }
}

fn of_host() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    format!("tcptrace {}", name.to_string_lossy())
}

fn of_recordings(args: &Top) -> String {
    let name = |path: &PathBuf| {
        let name = path.file_name().unwrap_or(path.as_os_str());
        name.to_string_lossy().into_owned()
    };
    let names: Vec<_> = args.replay.iter().map(name).collect();
    let speed = args.speed;
    let pace = if (speed - 1.0).abs() > f64::EPSILON {
        format!(" x{speed}")
    } else {
        String::new()
    };
    format!("{}{pace}", names.join(" "))
}

fn replay(args: Top, on_screen: OnScreen) -> Result<u8, Failure> {
    let OnScreen {
        shared,
        title,
        theme,
    } = on_screen;
    let Top {
        replay: files,
        speed,
        trace,
    } = args;
    *shared.lock() = View::replayed();
    let recorded = Recorded {
        files,
        from: None,
        to: None,
    };
    let selection = Selection::parse(&trace.event, &trace.errno, false).map_err(Failure::usage)?;
    let mut outputs = Outputs::of_replay();
    outputs.add(Format::Unwritten, Box::new(shared.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no clock and no signals")?;
    let entered = runtime.enter();
    let signals = Signals::new()?;
    drop(entered);
    let mut played = Played {
        screen: Screen::start(shared.clone(), title, theme, || Ok(()))?,
        shared,
        runtime,
        signals,
        speed,
        clock: None,
    };
    let outcome = play(&recorded, selection, outputs, &mut played);
    played.screen.close()?;
    for said in outcome? {
        // Nobody may be left to read it.
        let _ = writeln!(io::stderr(), "tcptrace: {}", printable(&said));
    }
    Ok(0)
}

/// Plays a recording at its own pace, or so many times as fast.
struct Played {
    screen: Screen,
    shared: Shared,
    runtime: Runtime,
    signals: Signals,
    speed: f64,
    /// When it is in the recording, and when that was looked at; `None` before its first event.
    clock: Option<(Timestamp, Instant)>,
}

/// The view passes time at least this often.
const STEP: Duration = Duration::from_millis(250);

impl Pace for Played {
    fn wait(&mut self, until: Option<Timestamp>) -> bool {
        loop {
            let (mut now, looked) = match (self.clock, until) {
                (Some(clock), _) => clock,
                (None, until) => (until.unwrap_or_default(), Instant::now()),
            };
            let passed = if self.screen.is_paused() {
                Duration::ZERO
            } else {
                looked.elapsed()
            };
            let passed = Duration::try_from_secs_f64(passed.as_secs_f64() * self.speed);
            let passed = passed.map_or(u64::MAX, |it| {
                u64::try_from(it.as_nanos()).unwrap_or(u64::MAX)
            });
            // At the end of the recording the clock stands.
            let limit = until.unwrap_or(now);
            now = Timestamp(now.0.saturating_add(passed).min(limit.0)).max(now);
            self.clock = Some((now, Instant::now()));
            self.shared.lock().tick(now);
            if until.is_some_and(|until| now >= until) && !self.screen.is_paused() {
                // The screen is over once somebody says so, also where events follow at once.
                return !self.is_over(Duration::ZERO);
            }
            let left = limit.0.saturating_sub(now.0);
            let left = Duration::from_nanos(left).div_f64(self.speed.max(f64::MIN_POSITIVE));
            let patience = if left.is_zero() { STEP } else { left.min(STEP) };
            if self.is_over(patience) {
                return false;
            }
        }
    }
}

impl Played {
    fn is_over(&mut self, patience: Duration) -> bool {
        let Self {
            runtime,
            signals,
            screen,
            ..
        } = self;
        runtime.block_on(async { timeout(patience, signals.end(screen)).await.is_ok() })
    }
}

/// The signals that a screen answers.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    suspend: Signal,
    again: Signal,
}

impl Signals {
    /// Called in a runtime: from now on they are heard.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            suspend: signal(SignalKind::from_raw(libc::SIGTSTP))?,
            again: signal(SignalKind::from_raw(libc::SIGCONT))?,
        })
    }

    /// Waits until a signal, or somebody at the keys, ends the screen. Stops and continues the process
    /// meanwhile.
    pub(super) async fn end(&mut self, screen: &Screen) {
        loop {
            tokio::select! {
                () = screen.quit() => return,
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                // The terminal is gone.
                _ = self.hangup.recv() => return,
                _ = self.suspend.recv() => screen.suspend(),
                _ = self.again.recv() => screen.again(),
            }
        }
    }
}
