//! Any bytes as the body of any answer of WeChat's: every parser returns, whatever they are.
//!
//! `cargo +nightly fuzz run wechat_answer`

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wechat::fuzzing::every_parser(bytes));
