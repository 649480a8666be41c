//! What the agent takes for an event, by stage and by storm: `cargo bench --bench throughput`.

mod stages;
mod storms;

use std::time::Instant;

use stages::Stage;
use storms::Storm;

/// Storms of one measurement, of which the median counts.
const ROUNDS: usize = 15;

fn main() {
    let args: Vec<_> = std::env::args().skip(1).filter(|it| it != "--bench").collect();
    match &args[..] {
        [] => table(),
        [stage, storm, rounds] => once(stage, storm, rounds.parse().expect("a number")),
        _ => panic!("nothing, or a stage, a storm and how often"),
    }
}

fn once(stage: &str, storm: &str, rounds: usize) {
    let stage = Stage::ALL.into_iter().find(|it| it.name() == stage);
    let mut storms = Storm::all();
    let storm = storms.iter_mut().find(|it| it.name == storm).expect("a storm");
    let mut agent = stage.expect("a stage").agent();
    for _ in 0..rounds {
        storm.again();
        agent.take(&storm.records);
    }
}

fn table() {
    println!("| stage | storm | ns an event | events/s |\n|---|---|---:|---:|");
    for stage in Stage::ALL {
        for mut storm in Storm::all() {
            let ns = measure(stage, &mut storm);
            println!("| {} | {} | {ns:.0} | {:.0} |", stage.name(), storm.name, 1e9 / ns);
        }
    }
}

/// Nanoseconds for an event, after a storm to warm up.
fn measure(stage: Stage, storm: &mut Storm) -> f64 {
    let mut agent = stage.agent();
    let mut rounds: Vec<_> = (0..=ROUNDS)
        .map(|_| {
            storm.again();
            let begun = Instant::now();
            agent.take(&storm.records);
            begun.elapsed().as_nanos() as f64 / storm.records.len() as f64
        })
        .skip(1)
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}
