//! What this kernel offers: where it keeps each field, which hooks it has, and what that lets us see.

pub mod btf;
pub mod confinement;
pub mod doctor;
pub mod facts;
pub mod layout;
pub mod load;
pub mod maps;
pub mod plan;
pub mod privileges;
pub mod symbols;
