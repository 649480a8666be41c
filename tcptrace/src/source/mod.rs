//! Where events come from.

pub mod ring;
