//! A row for each finding: when it was last told, how many failures it stands for, and why.

use super::Scene;
use super::table::{Cell, Column, fitted, left, right, short};
use crate::event::{EventId, Severity};
use crate::top::theme::Tone;

const WIDE: u16 = 110;

fn process_width(width: u16) -> u16 {
    if width < WIDE { 16 } else { 24 }
}

pub(super) fn columns(width: u16) -> Vec<Column> {
    vec![
        left("FINDING", 8),
        right("COUNT", 7),
        left("CAUSE", 23),
        left("PROCESS", process_width(width)),
        left("WHAT", 0),
    ]
}

pub(super) fn row(scene: Scene<'_>, id: EventId, width: u16) -> Option<Vec<Cell>> {
    let found = scene.view.found_by(id)?;
    let finding = found.finding()?;
    let (mark, tone) = match finding.severity {
        Severity::Error => ("!", Tone::Bad),
        Severity::Warn => ("", Tone::Warn),
        Severity::Info => ("", Tone::Faint),
    };
    let process = match &found.event.owner.process {
        Some(process) => {
            let number = format!("[{}]", process.pid);
            let room = usize::from(process_width(width)).saturating_sub(number.len());
            let comm = process.comm.to_string();
            Cell::new(
                format!("{}{number}", fitted(&comm, room, scene.theme)),
                Tone::Name,
            )
        }
        None => Cell::none(),
    };
    Some(vec![
        Cell::plain(scene.title.time(finding.last).to_string()),
        Cell::new(format!("{mark}{}", short(finding.count)), tone),
        Cell::new(finding.cause.as_str(), tone),
        process,
        Cell::plain(finding.title.as_str()),
    ])
}
