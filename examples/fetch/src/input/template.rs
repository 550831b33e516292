//! Input: template.
