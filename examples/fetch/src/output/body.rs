//! Output: body.
