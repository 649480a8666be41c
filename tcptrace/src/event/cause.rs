//! Why something failed: the identifiers of the stream and of `tcptrace explain`.

macro_rules! causes {
    ($($(#[$meta:meta])* $variant:ident: $name:literal,)*) => {
        /// Why something failed: the stable identifiers of the stream and of `tcptrace explain`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Cause {
            $($(#[$meta])* $variant,)*
        }

        impl Cause {
            /// Every cause.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The cause of an identifier.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|cause| cause.as_str() == name)
            }

            /// The identifier.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

causes! {
    /// One end wrote after the other had closed.
    WriteAfterPeerClose: "write_after_peer_close",
    /// The peer's own deadline expired while this process was still working.
    PeerGaveUp: "peer_gave_up",
    /// The process wrote after it had shut its own sending side.
    WriteAfterShutdown: "write_after_shutdown",
    /// The process closed with received bytes unread.
    ClosedWithUnreadData: "closed_with_unread_data",
    /// The process ended with the connection open.
    ProcessExited: "process_exited",
    /// The server closed soon after it had accepted.
    ClosedOnAccept: "closed_on_accept",
    /// The process closed with `SO_LINGER` on and a time of 0.
    LingerZero: "linger_zero",
    /// A RST came from a host that cannot be seen from here.
    ResetByPeer: "reset_by_peer",
    /// Something on the way or at the peer forgot a connection that was silent.
    IdleTimeout: "idle_timeout",
    /// A pooled connection the peer had closed meanwhile was used again.
    StalePooledConnection: "stale_pooled_connection",
    /// A listener closed with connections still queued.
    ListenerClosed: "listener_closed",
    /// Nothing listens on that port of this host.
    NoListener: "no_listener",
    /// A remote host refused.
    RefusedByPeer: "refused_by_peer",
    /// No way to the host or the network.
    Unreachable: "unreachable",
    /// The accept queue was full.
    AcceptQueueOverflow: "accept_queue_overflow",
    /// The SYN queue was full, or SYN cookies were sent.
    SynQueueOverflow: "syn_queue_overflow",
    /// No descriptor was left.
    FdExhausted: "fd_exhausted",
    /// The peer closed and the process never did.
    CloseWaitLeak: "close_wait_leak",
    /// A call used a descriptor that was closed before.
    UseAfterClose: "use_after_close",
    /// A call needs a connection and the socket has none.
    NotConnected: "not_connected",
    /// No SYN was answered.
    ConnectTimeout: "connect_timeout",
    /// A segment was never acknowledged.
    RetransmitTimeout: "retransmit_timeout",
    /// No keepalive probe was answered.
    KeepaliveTimeout: "keepalive_timeout",
    /// `TCP_USER_TIMEOUT` expired.
    UserTimeout: "user_timeout",
    /// The peer's receive window stayed closed.
    PeerNotReading: "peer_not_reading",
    /// `SO_RCVTIMEO` or `SO_SNDTIMEO` expired.
    SocketTimeout: "socket_timeout",
    /// The process closed while its SYN was unanswered.
    ConnectAbandoned: "connect_abandoned",
    /// The process closed with its request unanswered.
    GaveUpWaiting: "gave_up_waiting",
    /// A connection pool is held flat and busy while requests wait.
    PoolExhausted: "pool_exhausted",
    /// No ephemeral port was left.
    PortsExhausted: "ports_exhausted",
    /// Somebody else holds the port.
    AddressInUse: "address_in_use",
    /// The peer talks to a connection this host no longer knows.
    StaleConnection: "stale_connection",
    /// A netfilter rule rejected it.
    RejectedByFirewall: "rejected_by_firewall",
    /// An administrator ended it.
    KilledByAdmin: "killed_by_admin",
    /// TCP memory or orphans ran out.
    TcpMemoryPressure: "tcp_memory_pressure",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_unique_words() {
        let mut seen = std::collections::HashSet::new();
        for cause in Cause::ALL {
            let name = cause.as_str();
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{name}"
            );
            assert!(seen.insert(name), "{name} twice");
        }
    }
}
