//! What leaves no gap in a run, as its coverage records it.

use crate::diagnose::Sees;
use crate::event::Coverage;
use crate::kernel::plan::FINAL_ACK;

/// What the signals of all RSTs sent begin with.
const RESETS: &str = "reset sent";

/// What follows of a stream that does not say what it leaves out: nothing from what it does not show.
pub(super) const UNTOLD: Sees = Sees {
    resets: false,
    final_acks: true,
};

/// Marks the signals that leave no gap.
pub(super) fn mark(coverage: &mut [Coverage], sees: Sees) {
    for told in coverage {
        told.complete = match &*told.signal {
            FINAL_ACK => sees.final_acks,
            signal => sees.resets && signal.starts_with(RESETS),
        };
    }
}

/// What is known once this was told as well.
pub(super) fn read(sees: Sees, told: &Coverage) -> Sees {
    match &*told.signal {
        FINAL_ACK => Sees {
            final_acks: told.complete,
            ..sees
        },
        signal if signal.starts_with(RESETS) => Sees {
            resets: told.complete,
            ..sees
        },
        _ => sees,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::plan;

    #[test]
    fn what_is_marked_is_read_again() {
        for sees in [
            Sees::ALL,
            UNTOLD,
            Sees {
                resets: true,
                final_acks: false,
            },
        ] {
            let mut coverage: Vec<_> = plan::names()
                .map(|signal| Coverage {
                    signal: signal.into(),
                    way: None,
                    note: None,
                    complete: false,
                })
                .collect();
            mark(&mut coverage, sees);
            let known = coverage.iter().fold(UNTOLD, read);
            assert_eq!(
                (known.resets, known.final_acks),
                (sees.resets, sees.final_acks)
            );
        }
    }
}
