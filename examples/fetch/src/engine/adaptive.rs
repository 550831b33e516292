//! Engine: adaptive.
