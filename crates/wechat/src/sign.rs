//! The signatures that pages and cards carry.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use crate::Ticket;

/// The signature of `wx.config` for a page, by the app's `jsapi` ticket.
///
/// Whatever follows a `#` in the URL is left out, because the browser never shows it to WeChat.
pub fn jssdk_signature(ticket: &Ticket, nonce: &str, timestamp: i64, url: &str) -> String {
    let page = url.split('#').next().unwrap_or_default();
    let ticket = ticket.expose();
    sha1_hex(&format!("jsapi_ticket={ticket}&noncestr={nonce}&timestamp={timestamp}&url={page}"))
}

/// The signature of a card, by the app's `wx_card` ticket and those of timestamp, card id, code,
/// openid and nonce that the card uses, in any order.
pub fn card_signature(ticket: &Ticket, others: &[&str]) -> String {
    let mut parts = others.to_vec();
    parts.push(ticket.expose());
    sorted_sha1(&parts)
}

/// SHA-1, in hexadecimal, of the parts in byte order with nothing in between.
pub fn sorted_sha1(parts: &[&str]) -> String {
    let mut parts = parts.to_vec();
    parts.sort_unstable();
    sha1_hex(&parts.concat())
}

pub(crate) fn sha1_hex(text: &str) -> String {
    let mut hex = String::with_capacity(40);
    for byte in digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref() {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    const TICKET: &str =
        "sM4AOVdWfPE4DxkXGEs8VMCPGGVi4C3VM0P37wVUCFvkVAy_90u5h9nbSlYy3-Sl-HhTdfl2fzFy1AOcHKP7qg";

    #[derive(Deserialize)]
    struct Vectors {
        sha1_sorted: Vec<Sorted>,
        raw_sha1: Vec<Raw>,
    }

    #[derive(Deserialize)]
    struct Sorted {
        name: String,
        parts: Vec<String>,
        expect: String,
    }

    #[derive(Deserialize)]
    struct Raw {
        name: String,
        input: String,
        expect: String,
    }

    #[test]
    fn published_vectors() {
        let vectors: Vectors =
            serde_json::from_str(include_str!("../testdata/signatures.json")).unwrap();
        assert_eq!((vectors.sha1_sorted.len(), vectors.raw_sha1.len()), (9, 3));
        for Sorted { name, parts, expect } in &vectors.sha1_sorted {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            assert_eq!(sorted_sha1(&parts), *expect, "{name}");
            let (ticket, others) = parts.split_first().unwrap();
            assert_eq!(card_signature(&Ticket::new(*ticket), others), *expect, "{name}");
        }
        for Raw { name, input, expect } in &vectors.raw_sha1 {
            assert_eq!(sha1_hex(input), *expect, "{name}");
        }
    }

    #[test]
    fn a_page_is_signed_without_its_fragment() {
        let ticket = Ticket::new(TICKET);
        let sign = |url| jssdk_signature(&ticket, "Wm3WZYTPz0wzccnW", 1_414_587_457, url);
        let with_params = "0f9de62fce790f9a083d5c99e95740ceb90c27ed";
        assert_eq!(sign("http://mp.weixin.qq.com?params=value"), with_params);
        assert_eq!(sign("http://mp.weixin.qq.com?params=value#xxxx"), with_params);
        assert_eq!(sign("http://mp.weixin.qq.com?params=value#"), with_params);
        assert_eq!(sign("http://mp.weixin.qq.com"), "f4d90daf4b3bca3078ab155816175ba34c443a7b");
    }

    #[test]
    fn a_card_is_signed_in_any_order() {
        let ticket = Ticket::new("ffff");
        let expected = "89a0e60888a9471f75dc5eb0ee86431ddbec1fd9";
        assert_eq!(card_signature(&ticket, &["eeee", "bbbb", "dddd", "aaaa", "cccc"]), expected);
        assert_eq!(card_signature(&ticket, &["aaaa", "bbbb", "cccc", "dddd", "eeee"]), expected);
    }
}
