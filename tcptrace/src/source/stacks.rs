//! The ring of stacks: each is there before the event it is of.

use std::collections::VecDeque;

use aya::maps::{MapData, RingBuf};
use tcptrace_common::event::Stack;

/// The agent's end of the ring.
#[expect(missing_debug_implementations, reason = "aya's ring has none")]
pub struct Stacks {
    ring: RingBuf<MapData>,
    /// Those that lay before one that was asked for, in the order they came.
    passed: VecDeque<Box<Stack>>,
}

/// Stacks kept beside the ring: those of events that were lost are never asked for.
const KEPT: usize = 256;

impl Stacks {
    /// Takes stacks out of this ring.
    #[must_use]
    pub fn new(ring: RingBuf<MapData>) -> Self {
        Self {
            ring,
            passed: VecDeque::new(),
        }
    }

    /// The stack of the event with this id. `None` where there is none, or it is still being written
    /// behind one that another processor began before.
    ///
    /// Those behind it stay in the ring: of a burst that is too much, the first keep their stacks.
    pub fn take(&mut self, id: u64) -> Option<Box<Stack>> {
        if let Some(at) = self.passed.iter().position(|stack| stack.id == id) {
            return self.passed.remove(at);
        }
        while let Some(record) = self.ring.next() {
            let Ok(&stack) = bytemuck::try_from_bytes::<Stack>(&record) else {
                continue;
            };
            let stack = Box::new(stack);
            if stack.id == id {
                return Some(stack);
            }
            if self.passed.len() == KEPT {
                self.passed.pop_front();
            }
            self.passed.push_back(stack);
        }
        None
    }
}
