//! The one thread that keeps `CAP_SYS_ADMIN`, because to enter a network namespace takes it, and can
//! do little else with it.
//!
//! Containers come and go while a trace runs, and only from within a namespace the kernel tells what
//! its sockets are. So this thread, and those it starts for each visit, keep the capability;
//! `kernel::confinement` takes from them what else it would open: eBPF, mounts, modules, other
//! namespaces.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::Result;
use caps::{Capability, CapsHashSet};

use crate::kernel::confinement::{Part, confine};
use crate::kernel::privileges::keep_only;

type Visit<'a> = Box<dyn FnOnce() + Send + 'a>;

static DOOR: OnceLock<Sender<Visit<'static>>> = OnceLock::new();

/// The name of these threads.
pub const NAME: &str = "netns";

/// Starts the thread: from now on namespaces are entered through it.
///
/// # Errors
/// There is no thread, or its privileges cannot be confined; then no other namespace can be entered
/// once the caller has given up its own.
pub fn keep() -> Result<()> {
    let (send, visits) = mpsc::channel::<Visit>();
    let (tell, told) = mpsc::sync_channel(1);
    let serve = move || {
        let kept = CapsHashSet::from([Capability::CAP_SYS_ADMIN]);
        let confined = keep_only(&kept).and_then(|()| confine(Part::Door));
        let stays = confined.is_ok();
        if tell.send(confined).is_err() || !stays {
            return;
        }
        for visit in visits {
            // Each in a thread of its own: a long one holds up no other. One that cannot be started
            // is dropped, which its caller notices.
            drop(thread::Builder::new().name(NAME.into()).spawn(visit));
        }
    };
    thread::Builder::new().name(NAME.into()).spawn(serve)?;
    told.recv()??;
    // A second one would do the same.
    let _ = DOOR.set(send);
    Ok(())
}

/// Why a visit gave no result.
#[derive(Debug)]
pub(super) enum Failed {
    /// It panicked with this.
    Panicked(Box<dyn Any + Send>),
    /// There was no thread for it.
    NotStarted,
}

/// Whether namespaces are entered through the door.
pub(super) fn is_kept() -> bool {
    DOOR.get().is_some()
}

/// Runs `visit` in a thread behind the door, and waits for it.
pub(super) fn through<T: Send>(visit: impl FnOnce() -> T + Send) -> Result<T, Failed> {
    let door = DOOR.get().ok_or(Failed::NotStarted)?;
    let (tell, told) = mpsc::sync_channel(1);
    let visit: Visit<'_> = Box::new(move || {
        // Nobody left to tell is impossible: the caller waits.
        let _ = tell.send(catch_unwind(AssertUnwindSafe(visit)));
    });
    // SAFETY: only the lifetime is changed. What the visit borrows lives until this function returns,
    // which it does once the visit has told its result, and so consumed all it borrowed, or was
    // dropped.
    let visit = unsafe { std::mem::transmute::<Visit<'_>, Visit<'static>>(visit) };
    door.send(visit).map_err(|_| Failed::NotStarted)?;
    match told.recv() {
        Ok(result) => result.map_err(Failed::Panicked),
        Err(_) => Err(Failed::NotStarted),
    }
}
