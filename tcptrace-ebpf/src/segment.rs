//! Reading the TCP segment in a `struct sk_buff`, for events that have no connected socket.

use tcptrace_common::event::Tuple;

use crate::{
    kernel::{field, read, read_address},
    sock::{map, netns},
};

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// Bit of `skb->_skb_refdst` that is not part of the pointer.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/skbuff.h>
const SKB_DST_NOREF: u64 = 1;

/// A received segment.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    skb: u64,
    network: u64,
    transport: u64,
}

impl Segment {
    /// The segment in `skb`, if there is one.
    #[inline(always)]
    pub(crate) fn of(skb: u64) -> Option<Self> {
        if skb == 0 {
            return None;
        }
        let head = field!(skb, skb_head: u64);
        let network = field!(skb, skb_network_header: u16);
        let transport = field!(skb, skb_transport_header: u16);
        if head == 0 || transport == u16::MAX || transport <= network {
            return None;
        }
        Some(Self {
            skb,
            network: head + u64::from(network),
            transport: head + u64::from(transport),
        })
    }

    /// It opens a connection.
    #[inline(always)]
    pub(crate) fn is_syn(self) -> bool {
        read::<u8>(self.transport, 13) & (SYN | ACK) == SYN
    }

    /// It ends one at once.
    #[inline(always)]
    pub(crate) fn is_rst(self) -> bool {
        read::<u8>(self.transport, 13) & RST != 0
    }

    /// 2 or 10.
    #[inline(always)]
    pub(crate) fn family(self) -> u8 {
        if read::<u8>(self.network, 0) >> 4 == 4 {
            2
        } else {
            10
        }
    }

    /// The ends as the receiver sees them.
    #[inline(always)]
    pub(crate) fn tuple(self, tuple: &mut Tuple) {
        tuple.netns = self.netns();
        tuple.peer_port = u16::from_be(read(self.transport, 0));
        tuple.local_port = u16::from_be(read(self.transport, 2));
        if self.family() == 2 {
            map(read(self.network, 12), &mut tuple.peer);
            map(read(self.network, 16), &mut tuple.local);
        } else {
            read_address(self.network, 8, &mut tuple.peer);
            read_address(self.network, 24, &mut tuple.local);
        }
    }

    /// Address of the route, a `struct dst_entry`, that was found for a segment; 0: none.
    #[inline(always)]
    pub(crate) fn route(skb: u64) -> u64 {
        field!(skb, skb_refdst: u64) & !SKB_DST_NOREF
    }

    /// Namespace it was received in: the device's, or where TCP has taken that away, the device of
    /// the route that was found for it.
    #[inline(always)]
    pub(crate) fn netns(self) -> u32 {
        let device = field!(self.skb, skb_dev: u64);
        if device != 0 {
            return netns(field!(device, dev_net: u64));
        }
        let route = Self::route(self.skb);
        if route == 0 {
            return 0;
        }
        let device = field!(route, dst_dev: u64);
        if device == 0 {
            0
        } else {
            netns(field!(device, dev_net: u64))
        }
    }
}
