//! One test for each fault.
