//! Takes the terminal over as `tcptrace top` does, and panics.

use tcptrace::top::{Screen, Shared, Theme, Title};

fn main() -> anyhow::Result<()> {
    let title = Title::new("this screen ends by a panic".to_owned(), false);
    let _screen = Screen::start(Shared::default(), title, Theme::of(false), || Ok(()))?;
    // The screen has the keys: a file lets it go on.
    let go_on = std::env::args().nth(1).unwrap_or_default();
    while !std::path::Path::new(&go_on).exists() {
        std::thread::yield_now();
    }
    panic!("a panic of the thread that traces")
}
