//! Closes a connection to itself with bytes unread, once its stdin has a line; says "done" and goes on
//! until its stdin ends.

use std::io::{Write, stdin};
use std::net::{TcpListener, TcpStream};

#[inline(never)]
fn close_unread(accepted: TcpStream) {
    drop(accepted); // unread
    println!("done");
}

fn wait() {
    stdin().read_line(&mut String::new()).expect("stdin can be read");
}

fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let mut client = TcpStream::connect(address).expect("somebody listens");
    let (accepted, _) = listener.accept().expect("somebody has connected");
    client.write_all(b"what").expect("it is connected");
    accepted.peek(&mut [0]).expect("something was sent");
    println!("ready");
    wait();
    close_unread(accepted);
    wait();
}
