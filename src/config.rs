//! From the file to its meaning: `raw` is what the file says, `typed` what that means.

pub mod typed;
