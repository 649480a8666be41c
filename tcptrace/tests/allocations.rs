//! No event of a storm asks for memory: not to be read, analysed or written. A program of its own,
//! because the allocator counts for the whole of it.

#[path = "../benches/throughput/stages.rs"]
mod stages;
#[path = "../benches/throughput/storms.rs"]
mod storms;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use stages::Stage;
use storms::Storm;

/// Counts what this thread asks for.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system's allocator's doing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory comes from `alloc`, which is the system's.
        unsafe { System.dealloc(memory, layout) };
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        // SAFETY: the memory comes from `alloc`, which is the system's.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_event_of_a_storm_asks_for_memory() {
    for stage in Stage::ALL {
        for mut storm in Storm::all() {
            let mut agent = stage.agent();
            // Tables grow to their limits, and memory is used again from then on.
            for _ in 0..2 {
                storm.again();
                agent.take(&storm.records);
            }
            storm.again();
            let before = ASKED.get();
            agent.take(&storm.records);
            let asked = ASKED.get() - before;
            let events = storm.records.len() as u64;
            // What is asked of the host now and then, and what is told of the storm as a whole.
            assert!(
                asked < 1_000,
                "{} of {}: {asked} times for {events} events",
                stage.name(),
                storm.name
            );
        }
    }
}
