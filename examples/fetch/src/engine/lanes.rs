//! Engine: lanes.
