//! Offsets may not go against the clock: what began after something else had ended stands behind it.

use super::{Placed, Report};

/// Where an operation stands.
#[derive(Debug, Clone, Copy)]
pub struct Stand {
    pub offset: i64,
    /// It takes an offset of its own, rather than looking at what is there.
    pub is_write: bool,
}

/// Reports each operation that stands before, or for a write not behind, one that had ended when it began. `what` says
/// what the offsets are of.
pub fn real_time(what: &str, operations: &[(Placed<'_>, Stand)], report: &mut Report) {
    let mut by_start: Vec<&(Placed<'_>, Stand)> = operations.iter().collect();
    by_start.sort_by_key(|((_, operation), _)| operation.invoked_us);
    let mut by_end: Vec<(u64, i64, usize)> = operations
        .iter()
        .filter(|((_, operation), _)| operation.is_ok())
        .map(|((place, operation), stand)| (operation.ended_us, stand.offset, *place))
        .collect();
    by_end.sort_unstable();
    let mut ended = by_end.into_iter().peekable();
    let mut latest: Option<(i64, usize)> = None;
    for ((place, operation), stand) in by_start {
        while let Some((_, offset, place)) = ended.next_if(|(end, ..)| *end < operation.invoked_us) {
            latest = latest.max(Some((offset, place)));
        }
        let Some((before, by)) = latest else { continue };
        if stand.offset < before || (stand.is_write && stand.offset == before) {
            let message = format!("{what}: {} began after {before} had ended", stand.offset);
            report.object("real-time", message, &[by, *place]);
        }
    }
}
