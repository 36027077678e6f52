//! Settings for tests that are about something else than elections and sessions.

type Setting = (&'static str, &'static str);

const SLOW_ELECTIONS: [Setting; 2] = [("raft_election_min_ms", "1000"), ("raft_election_max_ms", "2000")];

/// Longer than any test.
pub const ENDLESS_SESSIONS: Setting = ("broker_session_timeout_ms", "600000");

/// Nobody who runs loses an office or a session: a process that stands still for a second costs none, and a session is
/// longer than an election that goes wrong once.
pub const CALM: &[Setting] = &[SLOW_ELECTIONS[0], SLOW_ELECTIONS[1], ("broker_session_timeout_ms", "10000")];

/// Nor does anybody who does not run lose a session.
pub const UNHURRIED: &[Setting] = &[SLOW_ELECTIONS[0], SLOW_ELECTIONS[1], ENDLESS_SESSIONS];
