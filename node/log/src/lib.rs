//! The log of a partition's replica, and the directories that hold such logs.
