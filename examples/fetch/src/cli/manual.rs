//! Man page and completions.
