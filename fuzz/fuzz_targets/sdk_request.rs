//! Any bytes as what an SDK asks: no spelling of a path or a parameter slips past a rule.
//!
//! `cargo +nightly fuzz run sdk_request`

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| server::fuzzing::a_request(bytes));
