//! What a process waits for and who waits for it: its connections, by which end sent last.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::SocketAddr;

use super::descriptors::Table;
use super::sockets::TcpSocket;
use crate::event::{Pool, State, Workload};

/// Of the connections a process holds; `None` where the kernel does not tell when data came and went.
#[must_use]
pub fn of(table: &Table) -> Option<Workload> {
    let untold = |socket: &TcpSocket| socket.state == State::Established && socket.info.is_none();
    let told = !table.tcp.iter().any(|open| untold(&open.socket));
    told.then(|| workload(table))
}

/// One that was accepted waits for us when data came in after we last sent, or lies unread; one whose
/// peer has closed since waits all the same for what its request needs. One of our own is busy when
/// we sent after data last came. Both times have the resolution of a jiffy: when they are the same
/// the answer came at once, and nobody waits.
fn workload(table: &Table) -> Workload {
    let mut workload = Workload::default();
    let mut pools: HashMap<SocketAddr, Pool> = HashMap::new();
    for socket in table.tcp.iter().map(|open| &open.socket) {
        let Some(server) = socket.flow.peer else {
            continue;
        };
        let accepted = table.listeners.serve(socket.flow.local);
        match socket.state {
            State::Established | State::CloseWait if accepted => {
                if let Some(waited) = waits_for_us(socket) {
                    workload.inbound += 1;
                    workload.inbound_oldest_ms = workload.inbound_oldest_ms.max(waited);
                }
            }
            State::Established => {
                let pool = pools.entry(server).or_insert(Pool {
                    server,
                    connections: 0,
                    busy: 0,
                    oldest_ms: 0,
                });
                pool.connections += 1;
                if let Some(waited) = waits_for_server(socket) {
                    pool.busy += 1;
                    pool.oldest_ms = pool.oldest_ms.max(waited);
                }
            }
            _ => {}
        }
    }
    workload.outbound = pools.into_values().collect();
    workload
        .outbound
        .sort_by_key(|pool| (Reverse(pool.connections), Reverse(pool.busy), pool.server));
    workload.outbound.truncate(Workload::ROWS);
    workload
}

/// Milliseconds since the peer's last byte, when it is unanswered.
fn waits_for_us(socket: &TcpSocket) -> Option<u64> {
    let info = socket.info?;
    let received = info.data_received_ago_ms?;
    let unanswered = info.data_sent_ago_ms.is_none_or(|sent| received < sent);
    (unanswered || socket.unread() > 0).then_some(received.into())
}

/// Milliseconds since our last byte, when it is unanswered.
fn waits_for_server(socket: &TcpSocket) -> Option<u64> {
    let info = socket.info?;
    let sent = info.data_sent_ago_ms?;
    let received = info.data_received_ago_ms;
    received
        .is_none_or(|received| sent < received)
        .then_some(sent.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::host::descriptors::Open;
    use crate::host::descriptors::tests::socket;
    use crate::host::sockets::Info;

    /// Local address, peer, when data last came and went, and bytes unread.
    type Connection<'a> = (&'a str, &'a str, Option<u32>, Option<u32>, u32);

    fn table(connections: &[Connection<'_>]) -> Table {
        let mut table = Table::default();
        table.listeners.add("10.0.0.1:80".parse().expect("one"));
        for &(local, peer, received, sent, unread) in connections {
            let mut socket = socket(State::Established, local, Some(peer));
            socket.recv_queue = unread;
            socket.info = Some(Info {
                data_received_ago_ms: received,
                data_sent_ago_ms: sent,
                ..Info::default()
            });
            let fds = vec![3];
            table.tcp.push(Open { socket, fds });
        }
        table
    }

    #[test]
    fn the_end_that_sent_last_waits() {
        let workload = workload(&table(&[
            // Asked 900 ms ago, not answered.
            ("10.0.0.1:80", "10.9.9.9:1001", Some(900), None, 0),
            // Asked again 40 ms ago, after an answer.
            ("10.0.0.1:80", "10.9.9.9:1002", Some(40), Some(70), 0),
            // Unread since 5 s, although something was sent later.
            ("10.0.0.1:80", "10.9.9.9:1003", Some(5_000), Some(10), 9),
            // Answered, answered at once, and silent.
            ("10.0.0.1:80", "10.9.9.9:1004", Some(40), Some(4), 0),
            ("10.0.0.1:80", "10.9.9.9:1005", Some(40), Some(40), 0),
            ("10.0.0.1:80", "10.9.9.9:1006", None, None, 0),
            // Two to the database, both busy; one of three to the cache, one never used.
            ("10.0.0.1:4001", "10.0.0.9:3306", Some(900), Some(800), 0),
            ("10.0.0.1:4002", "10.0.0.9:3306", None, Some(650), 0),
            ("10.0.0.1:4003", "10.0.0.8:6379", Some(3), Some(5), 0),
            ("10.0.0.1:4004", "10.0.0.8:6379", Some(9), Some(5), 0),
            ("10.0.0.1:4005", "10.0.0.8:6379", None, None, 0),
        ]));
        assert_eq!((workload.inbound, workload.inbound_oldest_ms), (3, 5_000));
        let pool = |server: &str, connections, busy, oldest_ms| Pool {
            server: server.parse().expect("an address"),
            connections,
            busy,
            oldest_ms,
        };
        assert_eq!(
            workload.outbound,
            [
                pool("10.0.0.8:6379", 3, 1, 5),
                pool("10.0.0.9:3306", 2, 2, 800),
            ]
        );
    }

    #[test]
    fn nothing_is_said_where_times_are_not_told() {
        let mut table = table(&[
            ("10.0.0.1:80", "10.9.9.9:1001", Some(900), None, 0),
            ("10.0.0.1:80", "10.9.9.9:1002", Some(900), None, 0),
        ]);
        assert!(of(&table).is_some());
        table.tcp[1].socket.info = None;
        assert_eq!(of(&table), None);
    }

    #[test]
    fn a_client_that_left_waits_all_the_same() {
        let left = |unread, sent| {
            let mut table = table(&[(
                "10.0.0.1:80",
                "10.9.9.9:1001",
                Some(900),
                sent,
                // The FIN counts as one.
                unread,
            )]);
            table.tcp[0].socket.state = State::CloseWait;
            workload(&table).inbound
        };
        assert_eq!(left(0, None), 1, "its request was read");
        assert_eq!(left(10, None), 1, "it was not");
        assert_eq!(left(10, Some(5)), 1, "a second one was not");
        assert_eq!(left(1, Some(5)), 0, "answered, the FIN not read");
        assert_eq!(left(0, Some(5)), 0);
        let mut upstream = table(&[("10.0.0.1:4001", "10.0.0.9:80", None, Some(5), 1)]);
        upstream.tcp[0].socket.state = State::CloseWait;
        assert_eq!(workload(&upstream).outbound, [], "of no use any more");
    }

    #[test]
    fn servers_are_bounded_and_the_most_used_stay() {
        let peers: Vec<_> = (0..20).map(|n| format!("10.0.1.{n}:80")).collect();
        let mut connections = Vec::new();
        for (nth, peer) in peers.iter().enumerate() {
            let one = ("10.0.0.1:4001", peer.as_str(), None, None, 0);
            connections.extend([one].repeat(nth + 1));
        }
        let workload = workload(&table(&connections));
        assert_eq!(workload.outbound.len(), Workload::ROWS);
        assert_eq!(workload.outbound[0].connections, 20);
        assert_eq!(workload.outbound[7].connections, 13);
    }

    #[test]
    fn a_request_on_its_way_is_busy_at_one_end_and_inbound_at_the_other() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let mut client = TcpStream::connect(addr).expect("listening");
        let (mut server, _) = listener.accept().expect("one waits");
        client.write_all(b"request").expect("connected");
        server.read_exact(&mut [0; 7]).expect("seven bytes");
        let look = || workload(&Table::read(std::process::id()).expect("our own"));
        let pool = |workload: &Workload| {
            let pool = workload.outbound.iter().find(|pool| pool.server == addr);
            pool.map(|pool| (pool.connections, pool.busy))
        };
        assert_eq!(pool(&look()), Some((1, 1)));
        assert!(look().inbound >= 1);
        // Answered in the same jiffy would be no proof.
        std::thread::sleep(Duration::from_millis(30));
        server.write_all(b"answer").expect("connected");
        client.read_exact(&mut [0; 6]).expect("six bytes");
        assert_eq!(pool(&look()), Some((1, 0)));
    }
}
