//! How often what makes the state space infinite may happen. Everything else happens as often as it can.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub used: Used,
    /// Of the partition: elections, other ISRs. Fencing and registering lead to such changes or to no new state.
    pub changes: i32,
    /// AlterPartition requests on their way at once.
    pub requests: usize,
    /// Whether requests that can only be refused are still under way, to be refused.
    pub late: bool,
    /// Whether answers get lost and requests are sent again while a copy is still under way.
    pub repeats: bool,
}

impl Bounds {
    pub const NONE: Self = Self {
        used: Used { writes: u8::MAX, crashes: u8::MAX, stops: u8::MAX },
        changes: i32::MAX,
        requests: usize::MAX,
        late: true,
        repeats: true,
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Used {
    /// Records written.
    pub writes: u8,
    /// Processes that end without warning and lose any part of the end of their log.
    pub crashes: u8,
    /// Processes that end and lose nothing: by a controlled shutdown, or without warning.
    pub stops: u8,
}

impl Used {
    pub fn fits(self, bounds: Self) -> bool {
        self.writes <= bounds.writes && self.crashes <= bounds.crashes && self.stops <= bounds.stops
    }
}
