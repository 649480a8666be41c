//! One file per kernel hook. An attach point is one line over a shared body, so that other ways of
//! attaching to the same thing cannot drift from it.

mod accept_queue;
mod descriptors;
mod io;
mod lifecycle;
mod process;
mod receive_reset;
mod retransmit;
mod send_reset;
mod set_state;
mod task_file;
