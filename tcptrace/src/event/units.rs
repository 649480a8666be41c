//! Numbers with their units, as a person reads them.

use std::fmt;

/// A number and what it counts.
#[derive(Clone, Copy, Debug)]
pub struct Count(pub u64, pub &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}{}",
            self.0,
            self.1,
            if self.0 == 1 { "" } else { "s" }
        )
    }
}

/// A time in the unit a person would choose.
#[derive(Clone, Copy, Debug)]
pub struct Millis(pub u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ms, s) = (self.0, self.0 / 1_000);
        match s {
            0 => write!(f, "{ms} ms"),
            1..600 => write!(f, "{s}.{} s", ms % 1_000 / 100),
            600..7_200 => write!(f, "{} min", s / 60),
            7_200..172_800 => write!(f, "{} h", s / 3_600),
            _ => write!(f, "{} days", s / 86_400),
        }
    }
}

/// The same from microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Micros(pub u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            us @ 0..1_000 => write!(f, "{us} us"),
            us @ 1_000..10_000 => write!(f, "{}.{} ms", us / 1_000, us % 1_000 / 100),
            us => Millis(us / 1_000).fmt(f),
        }
    }
}
