//! What a look over the host's sockets found, in words.

use std::fmt;

use crate::event::{
    CloseWaits, Count, End, Event, LimitedBy, Listener, Millis, Side, Sockets, State, States,
    TimeWaits, Unowned,
};

/// A finding in a word or two.
pub(super) fn label(found: &Sockets) -> &'static str {
    match found {
        Sockets::Namespace(_) => "namespace",
        Sockets::Process(_) => "process",
        Sockets::Unowned(..) => "no owner",
        Sockets::Listener(listener) if listener.is_full() => "queue full",
        Sockets::Listener(_) => "listener",
        Sockets::CloseWait(_) => "not closed",
        Sockets::TimeWait(_) => "TIME_WAIT",
        Sockets::Socket { .. } => "socket",
    }
}

/// The rest of the sentence.
pub(super) fn detail(f: &mut fmt::Formatter<'_>, event: &Event, found: &Sockets) -> fmt::Result {
    match found {
        Sockets::Namespace(namespace) => {
            match &namespace.name {
                Some(name) => write!(f, "{name}, ")?,
                None => write!(f, "{}, ", namespace.inode)?,
            }
            states(f, &namespace.states)?;
            match namespace.overflows {
                Some(overflows) => write!(
                    f,
                    "; accept queues found full {overflows} times since it began"
                ),
                None => Ok(()),
            }
        }
        Sockets::Process(process) => {
            states(f, &process.states)?;
            match process.limit {
                Some(limit) => write!(f, "; {} of {limit} descriptors open", process.open),
                None => write!(f, "; {} open", Count(process.open, "descriptor")),
            }
        }
        Sockets::Unowned(why, counts) => {
            f.write_str(nobody(*why))?;
            states(f, counts)
        }
        Sockets::Listener(row) => listener(f, row),
        Sockets::CloseWait(waits) => close_waits(f, waits),
        Sockets::TimeWait(waits) => time_waits(f, waits),
        Sockets::Socket { close_wait_ms } => {
            if let Some(state) = event.socket.as_ref().and_then(|socket| socket.state) {
                write!(f, "{state}")?;
            }
            close_wait_ms.map_or(Ok(()), |age| write!(f, " >{}", Millis(age)))
        }
    }
}

/// Why a socket is in no process's row.
pub(in crate::sink) fn nobody(why: Unowned) -> &'static str {
    match why {
        Unowned::NotAccepted => "not accepted yet: ",
        Unowned::NoProcess => "the kernel's alone: ",
        Unowned::NotSeen => "holder not seen: ",
    }
}

pub(in crate::sink) fn states(f: &mut fmt::Formatter<'_>, states: &States) -> fmt::Result {
    write!(f, "{}", Count(states.total(), "socket"))?;
    for number in 1..=11 {
        let Some(state) = State::from_number(number) else {
            continue;
        };
        let count = states.of(state);
        if count > 0 {
            write!(f, ", {count} {state}")?;
        }
    }
    Ok(())
}

fn listener(f: &mut fmt::Formatter<'_>, row: &Listener) -> fmt::Result {
    match row.max {
        Some(max) if row.is_full() => write!(f, "queue {} > {max}", row.len)?,
        Some(max) => write!(f, "queue {} of {max}", row.len)?,
        None => write!(f, "queue {}", row.len)?,
    }
    if let Some(by) = row.limited_by() {
        write!(f, " ({})", source(by))?;
    }
    if row.half_done > 0 {
        write!(
            f,
            ", {} half done",
            Count(row.half_done.into(), "handshake")
        )?;
    }
    match row.drops {
        Some(drops) if drops > 0 => write!(f, ", {}", Count(drops.into(), "drop")),
        _ => Ok(()),
    }
}

/// Where the limit of a queue comes from, for a person.
pub(in crate::sink) fn source(by: LimitedBy) -> &'static str {
    match by {
        LimitedBy::Listen => "listen()",
        LimitedBy::Somaxconn => "somaxconn",
        // It was larger when the program called listen.
        LimitedBy::LoweredSomaxconn => "old value",
    }
}

fn close_waits(f: &mut fmt::Formatter<'_>, waits: &CloseWaits) -> fmt::Result {
    write!(f, "{} in CLOSE_WAIT", waits.count)?;
    if let Some(age) = waits.age_ms {
        write!(f, ", the oldest >{}", Millis(age))?;
    }
    write!(f, ", EOF unread in {}", waits.eof_unread)?;
    if waits.unread > 0 {
        write!(f, ", {} unread", Count(waits.unread, "byte"))?;
    }
    Ok(())
}

fn time_waits(f: &mut fmt::Formatter<'_>, waits: &TimeWaits) -> fmt::Result {
    let (count, service) = (waits.count, End(waits.service));
    match waits.side {
        Some(Side::Server) => write!(
            f,
            "{count} in TIME_WAIT at {service}: this server closed first"
        ),
        Some(Side::Client) => write!(
            f,
            "{count} in TIME_WAIT to {service}: this client closed first"
        ),
        None => write!(
            f,
            "{count} in TIME_WAIT at {service}: this end closed first"
        ),
    }?;
    match waits.percent_of_ports() {
        Some(percent) => write!(f, "; {percent} % of the local ports to it"),
        None => Ok(()),
    }
}
