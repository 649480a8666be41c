//! A row for each address that is listened on: how full its queue is and was, who accepts and how fast.

use super::Scene;
use super::table::{self, Cell, Column, ending, left, right};
use crate::event::{End, Millis};
use crate::top::model::{History, Listener, Place};
use crate::top::theme::Tone;

const WIDE: u16 = 110;

/// Widths of address, bar and history.
fn widths(width: u16) -> (u16, u16, u16) {
    /// Numbers, spaces and an owner.
    const OTHERS: u16 = 64;
    let (address, bar) = match width {
        ..WIDE => return (16, 5, 8),
        WIDE..160 => (24, 12),
        _ => (44, 20),
    };
    (address, bar, (width - address - bar - OTHERS).min(60))
}

/// `129/128`
const NUMBERS: u16 = 9;

pub(super) fn columns(width: u16) -> Vec<Column> {
    let (address, bar, history) = widths(width);
    vec![
        left("LISTENER", address),
        left("QUEUE", bar + 1 + NUMBERS),
        left("HISTORY", history),
        right("LOST", 11),
        right("ACC/s", 5),
        right("LAST", 7),
        left("OWNER", 0),
    ]
}

pub(super) fn row(scene: Scene<'_>, place: Place, width: u16) -> Option<Vec<Cell>> {
    let listener = scene.view.listeners.get(&place)?;
    let (address, bar, history) = widths(width);
    let name = if place.address.port() == 0 {
        format!("in netns {}", place.netns)
    } else {
        End(place.address).to_string()
    };
    let tone = match listener {
        it if it.gone => Tone::Faint,
        it if it.is_full() => Tone::Bad,
        _ => Tone::Name,
    };
    let depth = listener.depth.last(history.into());
    let most = listener.max.map_or_else(
        || listener.depth.last(History::SECONDS).max().unwrap_or(0),
        |max| max.saturating_add(1),
    );
    let owner = match listener.owner {
        Some((pid, comm)) if width < WIDE => {
            // The number finds it; of the name as much as there is room for.
            let number = format!("[{}]", pid.pid);
            let used = 1 + 16 + 1 + 15 + 1 + 8 + 1 + 11 + 1 + 5 + 1 + 7 + 1;
            let room = usize::from(width).saturating_sub(used + number.len());
            let comm = comm.to_string();
            let comm = table::fitted(&comm, room, scene.theme);
            Cell::plain(format!("{comm}{number}"))
        }
        Some((pid, comm)) => {
            let shared = match listener.sockets {
                0 | 1 => String::new(),
                sockets => format!(" and others: {sockets} sockets"),
            };
            Cell::plain(format!("{comm}[{}]{shared}", pid.pid))
        }
        None => Cell::none(),
    };
    Some(vec![
        Cell::new(ending(&name, address.into(), scene.theme), tone),
        queue(scene, listener, bar),
        Cell::plain(scene.theme.spark(depth, most)),
        lost(listener),
        match listener.accepted {
            Some(_) if !listener.accepts.is_quiet() => {
                Cell::plain(table::rate(listener.accepts.rate()))
            }
            _ => Cell::none(),
        },
        match listener.last_accept {
            Some(at) => {
                let ago = scene.view.accepted_ago(at) / 1_000_000;
                let waits = ago >= 1_000 && listener.len.is_some_and(|len| len > 0);
                let tone = if waits && !listener.gone {
                    Tone::Bad
                } else {
                    Tone::Plain
                };
                Cell::new(Millis(ago).to_string(), tone)
            }
            None => Cell::none(),
        },
        owner,
    ])
}

fn queue(scene: Scene<'_>, listener: &Listener, bar: u16) -> Cell {
    if listener.gone {
        return Cell::new("closed", Tone::Faint);
    }
    let Some(len) = listener.len else {
        return Cell::none();
    };
    let Some(max) = listener.max else {
        return Cell::plain(format!("{:width$} {len}", "", width = usize::from(bar)));
    };
    let drawn = scene.theme.bar(bar.into(), listener.fullness());
    let (mark, tone) = match listener.fullness() {
        _ if listener.is_full() => ("!", Tone::Bad),
        500.. => ("", Tone::Warn),
        0 => ("", Tone::Faint),
        _ => ("", Tone::Plain),
    };
    Cell::new(format!("{drawn} {mark}{len}/{max}"), tone)
}

/// All of them, and how many a second now.
fn lost(listener: &Listener) -> Cell {
    let rate = listener.losses.rate();
    match listener.lost {
        0 => Cell::none(),
        lost if rate > 0.0 => {
            let rate = table::rate(rate);
            Cell::new(format!("{} {rate}/s", table::short(lost)), Tone::Bad)
        }
        lost => Cell::new(table::short(lost), Tone::Warn),
    }
}
