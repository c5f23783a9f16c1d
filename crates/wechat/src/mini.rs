//! What a mini program signs and encrypts with its user's session key.

use aws_lc_rs::{
    cipher::{AES_128, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey},
    constant_time::verify_slices_are_equal,
    iv::FixedLength,
};
use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value};

use crate::{AppId, SessionKey, sign::sha1_hex};

/// Data that does not open, by what is wrong with it. Nothing says how far the decryption came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecryptable {
    /// The session key is not base64 of 16 bytes.
    #[error("the session key is not one")]
    SessionKey,
    /// The initialisation vector is not base64 of 16 bytes.
    #[error("the initialisation vector is not base64 of 16 bytes")]
    Iv,
    /// The data is not base64 of whole blocks.
    #[error("the data is not base64 of whole blocks of 16 bytes")]
    Data,
    /// It does not open with this session key: encrypted with an earlier or a later one, or
    /// altered.
    #[error("the data does not open with the key of this session")]
    Sealed,
    /// It opens, and its watermark names another app or none.
    #[error("the data is of another app")]
    Watermark,
}

/// Padding or none, whichever the sender's library writes.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Opens the `encryptedData` of a mini program of `app`: AES-128-CBC, then a JSON object whose
/// `watermark` names the app.
pub fn decrypt(
    app: &AppId,
    session_key: &SessionKey,
    iv: &str,
    encrypted_data: &str,
) -> Result<Map<String, Value>, Undecryptable> {
    let key = sixteen(session_key.expose()).ok_or(Undecryptable::SessionKey)?;
    let iv = sixteen(iv).ok_or(Undecryptable::Iv)?;
    let mut data = BASE64.decode(encrypted_data).map_err(|_| Undecryptable::Data)?;
    if data.is_empty() || data.len() % 16 != 0 {
        return Err(Undecryptable::Data);
    }

    let sealed = |_| Undecryptable::Sealed;
    let key = UnboundCipherKey::new(&AES_128, &key).map_err(sealed)?;
    let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).map_err(sealed)?;
    let context = DecryptionContext::Iv128(FixedLength::from(iv));
    let plain = key.decrypt(&mut data, context).map_err(sealed)?;
    let Ok(Value::Object(fields)) = serde_json::from_slice(plain) else {
        return Err(Undecryptable::Sealed);
    };

    let named = fields.get("watermark").and_then(|watermark| watermark.get("appid"));
    if named.and_then(Value::as_str) != Some(app.as_str()) {
        return Err(Undecryptable::Watermark);
    }
    Ok(fields)
}

/// Whether `signature` is that of a mini program's `rawData`: the SHA-1, in hexadecimal, of the
/// data and the session key.
pub fn is_signed(session_key: &SessionKey, raw_data: &str, signature: &str) -> bool {
    let expected = sha1_hex(&format!("{raw_data}{}", session_key.expose()));
    verify_slices_are_equal(expected.as_bytes(), signature.as_bytes()).is_ok()
}

fn sixteen(base64: &str) -> Option<[u8; 16]> {
    BASE64.decode(base64).ok()?.try_into().ok()
}

/// For the fuzzer: the bytes as data, as vector and as signature.
pub(crate) fn every_step(session_key: &SessionKey, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(app) = "wx1".parse() else { return };
    let iv = "AAAAAAAAAAAAAAAAAAAAAA==";
    let _ = decrypt(&app, session_key, iv, &text);
    let _ = decrypt(&app, session_key, iv, &BASE64.encode(bytes));
    let _ = decrypt(&app, session_key, &text, "AAAAAAAAAAAAAAAAAAAAAA==");
    let _ = is_signed(session_key, &text, &text);
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Vector {
        #[serde(rename = "session_key")]
        session_key: String,
        iv: String,
        encrypted_data: String,
        raw_data: String,
        #[serde(rename = "signature_session_key")]
        signature_session_key: String,
        signature: String,
    }

    const APP: &str = "wx4f4bc4dec97d474b";

    fn vector() -> Vector {
        serde_json::from_str(include_str!("../testdata/mini.json")).unwrap()
    }

    fn open(app: &str, key: &str, iv: &str, data: &str) -> Result<String, Undecryptable> {
        let fields = decrypt(&app.parse().unwrap(), &SessionKey::new(key), iv, data)?;
        Ok(fields["openId"].as_str().unwrap().to_owned())
    }

    #[test]
    fn published_data_opens() {
        let Vector { session_key, iv, encrypted_data, .. } = vector();
        let key = SessionKey::new(session_key);
        let fields = decrypt(&APP.parse().unwrap(), &key, &iv, &encrypted_data).unwrap();
        assert_eq!(fields["openId"], "oGZUI0egBJY1zhBYw2KhdUfwVJJE");
        assert_eq!(fields["unionId"], "ocMvos6NjeKLIBqg5Mr9QjxrP1FA");
        assert_eq!(fields["watermark"]["timestamp"], 1_477_314_187);
    }

    #[test]
    fn what_does_not_open_says_what_is_wrong() {
        let Vector { session_key, iv, encrypted_data, signature_session_key, .. } = vector();
        let data = encrypted_data.as_str();
        let cut = &data[..44];
        for (app, key, iv, data, wrong) in [
            (APP, "short", iv.as_str(), data, Undecryptable::SessionKey),
            (APP, session_key.as_str(), "", data, Undecryptable::Iv),
            (APP, &session_key, "%%%", data, Undecryptable::Iv),
            (APP, &session_key, &iv, "", Undecryptable::Data),
            (APP, &session_key, &iv, &data[..20], Undecryptable::Data),
            (APP, &session_key, &iv, "微信", Undecryptable::Data),
            (APP, &session_key, &iv, cut, Undecryptable::Data),
            (APP, &session_key, &iv, &data[..64], Undecryptable::Sealed),
            (APP, &signature_session_key, &iv, data, Undecryptable::Sealed),
            ("wx0000000000000000", &session_key, &iv, data, Undecryptable::Watermark),
        ] {
            assert_eq!(open(app, key, iv, data), Err(wrong), "{app} {iv} {data}");
        }
    }

    #[test]
    fn a_published_signature_is_right_and_no_other() {
        let Vector { raw_data, signature_session_key, signature, session_key, .. } = vector();
        let key = SessionKey::new(signature_session_key);
        assert!(is_signed(&key, &raw_data, &signature));
        assert!(!is_signed(&key, &format!("{raw_data} "), &signature));
        assert!(!is_signed(&key, &raw_data, &signature[..39]));
        assert!(!is_signed(&key, &raw_data, ""));
        assert!(!is_signed(&SessionKey::new(session_key), &raw_data, &signature));
    }
}
