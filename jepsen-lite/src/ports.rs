//! Ports below the ephemeral range, so that no outgoing connection takes the port of a node that is down for a moment.

use std::net::TcpListener;
use std::ops::Range;
use std::sync::{LazyLock, Mutex};

/// Shared by all test processes of a machine. Ephemeral ports start above, at 32768 where nobody changed that.
const RANGE: Range<u16> = 10_000..32_000;

/// Ports per process: several times what the largest run takes.
const BLOCK: u16 = 1_000;

/// The ports of this process: its first port is held for as long as the process lives, so that no other takes it.
struct Block {
    _held: TcpListener,
    ports: Range<u16>,
    next: u16,
}

static BLOCK_OF_THIS_PROCESS: LazyLock<Mutex<Block>> = LazyLock::new(|| Mutex::new(claim()));

/// A port where nobody listens. It is not given out again until all others have been.
pub fn free_port() -> u16 {
    let mut block = BLOCK_OF_THIS_PROCESS.lock().expect("no holder panics");
    for _ in 0..BLOCK {
        let port = block.next;
        block.next = if port + 1 == block.ports.end { block.ports.start } else { port + 1 };
        if bind(port).is_some() {
            return port;
        }
    }
    panic!("no port between {} and {} is free", block.ports.start, block.ports.end);
}

fn claim() -> Block {
    let blocks = (RANGE.end - RANGE.start) / BLOCK;
    // Processes that start together begin at different places; any place will do.
    let first = u16::try_from(std::process::id() % u32::from(blocks)).expect("less than the number of blocks");
    let mut starts = (0..blocks).map(|at| RANGE.start + (first + at) % blocks * BLOCK);
    let claimed = starts.find_map(|start| bind(start).map(|held| (start, held)));
    let (start, held) = claimed.expect("fewer than two dozen test processes run at a time");
    Block { _held: held, ports: start + 1..start + BLOCK, next: start + 1 }
}

fn bind(port: u16) -> Option<TcpListener> {
    TcpListener::bind(("127.0.0.1", port)).ok()
}
