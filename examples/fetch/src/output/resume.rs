//! Output: resume.
