//! The door for the fuzzer: every parser of this crate, fed with any bytes.
//!
//! Not part of the crate's interface.

use crate::{SessionKey, answer, lenient, mini, split_rid};

/// Feeds the bytes to every parser. Whatever they are, it returns.
pub fn every_parser(bytes: &[u8]) {
    for status in [200, 302, 502] {
        let _ = lenient::read(status, bytes, &["s3cr3t"], answer::token);
        let _ = lenient::read(status, bytes, &["s3cr3t"], answer::ticket);
        let _ = lenient::read(status, bytes, &["s3cr3t"], answer::grant);
        let _ = lenient::read(status, bytes, &["s3cr3t"], answer::web_user);
        let _ = lenient::read(status, bytes, &["s3cr3t"], answer::mini_session);
        let _ = lenient::read(status, bytes, &["s3cr3t"], answer::follower);
        let _ = lenient::read(status, bytes, &["s3cr3t"], answer::followers);
        let _ = lenient::read(status, bytes, &["s3cr3t"], answer::follower_page);
        let _ = lenient::read(status, bytes, &["s3cr3t"], answer::ip_list);
        let _ = lenient::read(status, bytes, &["s3cr3t"], answer::quota);
        let _ = lenient::read(status, bytes, &["s3cr3t"], answer::done);
    }
    mini::every_step(&SessionKey::new("AAAAAAAAAAAAAAAAAAAAAA=="), bytes);
    let _ = split_rid(&String::from_utf8_lossy(bytes));
}
