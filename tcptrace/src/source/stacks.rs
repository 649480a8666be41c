//! The ring of stacks: each is there before the event it is of.

use std::collections::VecDeque;

use aya::maps::{MapData, RingBuf};
use tcptrace_common::event::Stack;

/// The agent's end of the ring.
#[expect(missing_debug_implementations, reason = "aya's ring has none")]
pub struct Stacks {
    ring: RingBuf<MapData>,
    /// Taken out and not yet asked for, in the order they came.
    taken: VecDeque<Box<Stack>>,
}

/// Stacks kept beside the ring: those of events that were lost are never asked for.
const KEPT: usize = 256;

impl Stacks {
    /// Takes stacks out of this ring.
    #[must_use]
    pub fn new(ring: RingBuf<MapData>) -> Self {
        Self {
            ring,
            taken: VecDeque::new(),
        }
    }

    /// The stack of the event with this id. `None` where there is none, or it is still being written
    /// behind one that another processor began before.
    pub fn take(&mut self, id: u64) -> Option<Box<Stack>> {
        while let Some(record) = self.ring.next() {
            if let Ok(&stack) = bytemuck::try_from_bytes::<Stack>(&record) {
                if self.taken.len() == KEPT {
                    self.taken.pop_front();
                }
                self.taken.push_back(Box::new(stack));
            }
        }
        let at = self.taken.iter().position(|stack| stack.id == id)?;
        self.taken.remove(at)
    }
}
