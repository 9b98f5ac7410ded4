//! `/firmware` and `/ota`: images, and the updates that bring them to devices.
//!
//! An image arrives in a file (see the guard) and is moved to the name of its hash before its row is committed. An update is
//! committed and answered 202; it begins when its device is there, and is told by `ota.progress`.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Value, json};
use utoipa::ToSchema;

use super::audit;
use super::body::{self, Fields};
use super::call::{Call, Next, located, not_done, read, reading, submit};
use super::commands::admit;
use super::{Api, List, RETRY_AFTER_S, no_device, now};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::live::Live;
use crate::api::message::{Request, UploadedBody};
use crate::api::route::Query;
use crate::gateway::product::Product;
use crate::model::{DeviceId, Firmware, FtpSource, OtaMethod, OtaState, OtaTask, Priority};
use crate::ota::image_path;
use crate::protocol::bkv::body::OTA_FILE_LEN;
use crate::signature::decode_hex;
use crate::store::payload;
use crate::store::{
    DeviceRecord, FirmwareKey, Job, NewFirmware, NewOtaTask, OtaFilter, OtaJob, OtaOutcome, Outcome, Reader,
};

/// Characters of an image's name.
const NAME_LEN_MAX: usize = 64;
const FTP_PORT: u16 = 21;

/// Takes an uploaded image.
pub(super) fn upload(api: &Arc<Api>, query: &Query<'_>, request: &Request) -> Result<Next, ApiError> {
    let Some(upload) = request.upload.clone() else {
        return Err(ApiError::invalid("body is empty, it must be the image"));
    };
    let name = query.value("name").ok_or_else(|| ApiError::invalid("name is missing"))?;
    if name.is_empty() || name.chars().count() > NAME_LEN_MAX || name.chars().any(char::is_control) {
        return Err(ApiError::invalid(format!(
            "name must have 1 to {NAME_LEN_MAX} printable characters, got {name:?}"
        )));
    }
    let version = query.value("version").map(version).transpose()?;
    let device_type = query.value("device_type").map(device_type).transpose()?;
    let size = u32::try_from(upload.bytes).map_err(|_| ApiError::invalid("the image has more than 4 GiB"))?;
    let firmware =
        NewFirmware { sha256: upload.sha256, size, name: name.to_owned(), version, device_type, at: now().unix_ms };
    let api = Arc::clone(api);
    Ok(Box::new(move |call| {
        if let Err(error) = keep(&api, &upload) {
            log::error!(request_id = call.request_id(); "firmware cannot be kept: {error}");
            return call.error(&ApiError::not_ready("the firmware could not be kept", RETRY_AFTER_S));
        }
        submit(call, Job::Ota(Box::new(OtaJob::AddFirmware(firmware))), uploaded);
    }))
}

/// Moves an image from where it was written to the name of its hash.
fn keep(api: &Api, upload: &UploadedBody) -> std::io::Result<()> {
    let dir = &api.firmware_dir;
    fs::rename(dir.join(&upload.file_name), image_path(dir, &upload.sha256))?;
    File::open(dir)?.sync_all()
}

fn uploaded(call: Call, outcome: Outcome) {
    match ota_outcome(outcome) {
        Ok(OtaOutcome::Firmware { firmware, added }) => {
            if added {
                audit::done(&call, "firmware.upload", firmware.id);
            }
            call.success(if added { 201 } else { 200 }, &firmware);
        }
        Ok(other) => call.error(&not_done(&Outcome::Ota(Box::new(other)))),
        Err(outcome) => call.error(&not_done(&outcome)),
    }
}

fn ota_outcome(outcome: Outcome) -> Result<OtaOutcome, Outcome> {
    if let Outcome::Ota(outcome) = outcome { Ok(*outcome) } else { Err(outcome) }
}

/// Reads `2.05` or `V2.05` as hundredths.
fn version(text: &str) -> Result<u16, ApiError> {
    let (major, minor) = text.strip_prefix(['V', 'v']).unwrap_or(text).split_once('.').unwrap_or_default();
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok())?;
    let hundredths = match (number(major), number(minor).filter(|_| minor.len() == 2)) {
        (Some(major), Some(minor)) => major.checked_mul(100).and_then(|major| major.checked_add(minor)),
        _ => None,
    };
    hundredths.ok_or_else(|| ApiError::invalid(format!("version must be like 2.05, at most 655.35, got {text:?}")))
}

/// Reads a type as decimal, or as hex after `0x`, the way the vendor writes it.
fn device_type(text: &str) -> Result<u8, ApiError> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u8::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    number.ok_or_else(|| ApiError::invalid(format!("device_type must be in 0..=255 or 0x00..=0xff, got {text:?}")))
}

/// A page of images.
pub(super) fn firmware_list(query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    let device_type = query.value("device_type").map(device_type).transpose()?;
    Ok(reading(move |reader| {
        let found = reader.firmware_list(device_type, page.page, page.size)?;
        Ok(List::new(found.rows, found.total, page))
    }))
}

/// The body that begins an update.
#[derive(ToSchema)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
pub(in crate::api) struct UpdateRequest {
    /// The image; not for `ftp` and `self_update`.
    firmware: Option<FirmwareName>,
    /// How it reaches the device. Left out: by the vendor's tables, from device type, recognition code and firmware.
    method: Option<OtaMethod>,
    /// Whether the verification packet is appended: `e0`, `e1`, `e2`.
    #[schema(default = false)]
    verification: Option<bool>,
    /// Whether it goes on although an order is active.
    #[schema(default = false)]
    force: Option<bool>,
    /// BKV/GN: IPv4 address the gateway fetches from.
    #[schema(format = Ipv4)]
    ftp_host: Option<String>,
    /// BKV/GN.
    #[schema(minimum = 1, default = 21)]
    ftp_port: Option<u16>,
    /// BKV/GN: the file's name.
    #[schema(min_length = 1, max_length = 13, pattern = "^[ -~]+$")]
    file: Option<String>,
}

/// An image by its `firmware_id`, or by the SHA-256 of its bytes in hex.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
enum FirmwareName {
    Id(i64),
    Sha256(String),
}

/// What a request says of the update it wants.
struct Wish {
    device_id: DeviceId,
    firmware: Option<FirmwareKey>,
    method: Option<OtaMethod>,
    verification: bool,
    force: bool,
    ftp: Option<FtpSource>,
    request_id: String,
}

/// Begins an update.
pub(super) fn create(device_id: DeviceId, request: &Request) -> Result<Next, ApiError> {
    let wish = read_wish(Fields::of(request)?, device_id, &request.request_id)?;
    Ok(located(device_id, move |api, live| begin(api, wish, live)))
}

fn begin(api: &Arc<Api>, wish: Wish, live: Option<Live>) -> Result<Next, ApiError> {
    let device_id = wish.device_id;
    let place = admit(api, Priority::Idle, live.as_ref().map_or(0, Live::waiting))?;
    Ok(Box::new(move |call| {
        read(call, move |call, reader| {
            let new = reader.and_then(|reader| resolve(reader, &wish, live.as_ref()));
            let mut new = match new {
                Ok(new) => new,
                Err(error) => return call.error(&error),
            };
            new.idempotency = call.idempotency().cloned();
            let at = new.at;
            submit(call, Job::Ota(Box::new(OtaJob::Create(new))), move |call, outcome| {
                drop(place);
                created(call, device_id, at, outcome);
            });
        });
    }))
}

fn read_wish(mut fields: Fields, device_id: DeviceId, request_id: &str) -> Result<Wish, ApiError> {
    let firmware = fields.value("firmware").map(|value| firmware_key(&value)).transpose()?;
    let words = OtaMethod::ALL.map(OtaMethod::as_str);
    let method = fields.word("method", &words)?.and_then(OtaMethod::from_word);
    let verification = fields.flag("verification")?.unwrap_or(false);
    let force = fields.flag("force")?.unwrap_or(false);
    let host = fields.text("ftp_host")?;
    let port = fields.number("ftp_port", 1..=u16::MAX)?;
    let file = fields.ascii("file", 1..=OTA_FILE_LEN)?;
    let is_gateway = matches!(device_id, DeviceId::Gateway(_));
    let method = match method {
        None if is_gateway => Some(OtaMethod::Ftp),
        Some(method) if is_gateway != (method == OtaMethod::Ftp) => {
            let message = format!("method {} is not supported by device {device_id}", method.as_str());
            return Err(ApiError::new(ErrorCode::NotSupported, message));
        }
        given => given,
    };
    let ftp = if method == Some(OtaMethod::Ftp) {
        let host = fields.required("ftp_host", host)?;
        let host: Ipv4Addr =
            host.parse().map_err(|_| ApiError::invalid(format!("ftp_host must be an IPv4 address, got {host:?}")))?;
        Some(FtpSource { host, port: port.unwrap_or(FTP_PORT), file: fields.required("file", file)? })
    } else {
        if host.is_some() || port.is_some() || file.is_some() {
            return Err(ApiError::invalid("ftp_host, ftp_port and file belong to method ftp"));
        }
        None
    };
    if method.is_some_and(|method| method.chunk_bytes().is_none()) && (firmware.is_some() || verification) {
        return Err(ApiError::invalid("firmware and verification do not belong to a method that sends no image"));
    }
    if ftp.is_none() && method != Some(OtaMethod::SelfUpdate) && firmware.is_none() {
        return Err(ApiError::invalid("firmware is missing"));
    }
    fields.finish(&["firmware", "method", "verification", "force", "ftp_host", "ftp_port", "file"])?;
    Ok(Wish { device_id, firmware, method, verification, force, ftp, request_id: request_id.to_owned() })
}

fn firmware_key(value: &Value) -> Result<FirmwareKey, ApiError> {
    let by_hash = || value.as_str().and_then(decode_hex).map(FirmwareKey::Sha256);
    value.as_i64().map(FirmwareKey::Id).or_else(by_hash).ok_or_else(|| {
        ApiError::invalid(format!("firmware must be a firmware_id or a SHA-256 of 64 hex digits, got {value}"))
    })
}

/// What the store knows, and what follows from it.
fn resolve(reader: &mut dyn Reader, wish: &Wish, live: Option<&Live>) -> Result<NewOtaTask, ApiError> {
    let record = reader.device(wish.device_id)?.ok_or_else(|| no_device(wish.device_id))?;
    let firmware = match wish.firmware {
        None => None,
        Some(key) => {
            let found = reader.firmware(key)?;
            Some(found.ok_or_else(|| ApiError::new(ErrorCode::NotFound, "there is no such firmware"))?)
        }
    };
    let product = product(wish.device_id, &record, live);
    let method = match (wish.method, product) {
        (Some(method), _) => method,
        (None, product) => product.and_then(Product::update_method).ok_or_else(|| unknown_product(wish, product))?,
    };
    let packets_total = match &firmware {
        None => 0,
        Some(firmware) => packets(method, firmware, wish.verification, product)?,
    };
    Ok(NewOtaTask {
        device_id: wish.device_id,
        method,
        firmware_id: firmware.map(|firmware| firmware.id),
        ftp: wish.ftp.clone(),
        verification: wish.verification,
        force: wish.force,
        packets_total,
        at: now().unix_ms,
        request_id: wish.request_id.clone(),
        idempotency: None,
    })
}

/// What memory or, for a device that is away, the store knows of a device.
fn product(device_id: DeviceId, record: &DeviceRecord, live: Option<&Live>) -> Option<Product> {
    let DeviceId::Ap3000(phy_id) = device_id else { return None };
    let firmware = live.and_then(Live::firmware).or_else(|| record.firmware.clone());
    let device_type = live.and_then(Live::device_type).or(record.device_type);
    Some(Product::new(phy_id, device_type, firmware.as_deref()))
}

fn unknown_product(wish: &Wish, product: Option<Product>) -> ApiError {
    let show = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
    let (device_type, major) = product.map_or((None, None), |product| (product.device_type, product.major));
    let message = format!(
        "device {} (type {}, firmware major {}) is in no table of update commands: give method",
        wish.device_id,
        show(device_type.map(|device_type| format!("0x{device_type:02x}"))),
        show(major.map(|major| major.to_string())),
    );
    ApiError::new(ErrorCode::NotSupported, message)
}

/// Checks that a method can bring an image to a device, and counts its packets.
fn packets(
    method: OtaMethod,
    firmware: &Firmware,
    verification: bool,
    product: Option<Product>,
) -> Result<u16, ApiError> {
    let word = method.as_str();
    if verification {
        if !matches!(method, OtaMethod::E0 | OtaMethod::E1 | OtaMethod::E2) {
            let message = format!("method {word} has no verification packet, only e0, e1 and e2 have");
            return Err(ApiError::new(ErrorCode::NotSupported, message));
        }
        if firmware.version.is_none() || firmware.device_type.is_none() {
            let message = format!("verification needs version and device_type, firmware {} lacks one", firmware.id);
            return Err(ApiError::invalid(message));
        }
    }
    // A power board has a type of its own, and what a host passes on is not for the host.
    let for_the_device = !matches!(method, OtaMethod::E1 | OtaMethod::E2);
    if let (true, Some(wanted), Some(found)) =
        (for_the_device, firmware.device_type, product.and_then(|product| product.device_type))
        && wanted != found
    {
        let message = format!("firmware {} is for type 0x{wanted:02x}, the device is of 0x{found:02x}", firmware.id);
        return Err(ApiError::invalid(message));
    }
    let size = usize::try_from(firmware.size).unwrap_or(usize::MAX);
    method
        .packets(size, verification)
        .ok_or_else(|| ApiError::invalid(format!("an image of {size} bytes has more packets than {word} can count")))
}

fn created(call: Call, device_id: DeviceId, at: i64, outcome: Outcome) {
    match ota_outcome(outcome) {
        Ok(OtaOutcome::Created(task)) => {
            log::info!(
                task_id = task.id, device_id:% = device_id, method = task.method.as_str(),
                request_id = call.request_id();
                "update created"
            );
            let body = payload::ota_accepted(&task, call.request_id(), at);
            call.written(payload::ACCEPTED, body);
        }
        Ok(OtaOutcome::Busy(task)) => {
            let message = format!("device {device_id} has the open update {}", task.id);
            call.error(&task_state(message, &task));
        }
        Ok(OtaOutcome::NoDevice) => call.error(&no_device(device_id)),
        Ok(other) => call.error(&not_done(&Outcome::Ota(Box::new(other)))),
        Err(outcome) => call.error(&not_done(&outcome)),
    }
}

fn task_state(message: String, task: &OtaTask) -> ApiError {
    let (state, text) = (task.state.code(), task.state.as_str());
    let data = json!({"task_id": task.id, "state": state, "state_text": text});
    ApiError::new(ErrorCode::TaskState, message).with_data(data)
}

fn no_task(id: i64) -> ApiError {
    ApiError::new(ErrorCode::TaskNotFound, format!("there is no update {id}"))
}

/// A page of updates.
pub(super) fn list(query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    let device_id = query.value("device_id").map(|text| body::device_id("device_id", text)).transpose()?;
    let state = query.value("state").map(state).transpose()?;
    Ok(reading(move |reader| {
        let found = reader.ota_tasks(&OtaFilter { device_id, state }, page.page, page.size)?;
        Ok(List::new(found.rows, found.total, page))
    }))
}

/// A state, by number or word.
fn state(text: &str) -> Result<OtaState, ApiError> {
    let by_word = || OtaState::ALL.into_iter().find(|state| state.as_str() == text);
    text.parse().ok().and_then(OtaState::from_code).or_else(by_word).ok_or_else(|| {
        let words = OtaState::ALL.map(OtaState::as_str).join(", ");
        ApiError::invalid(format!("state must be in 0..=4 or one of {words}, got {text:?}"))
    })
}

/// One update.
pub(super) fn one(id: i64) -> Next {
    reading(move |reader| reader.ota_task(id)?.ok_or_else(|| no_task(id)))
}

/// Ends an update.
pub(super) fn cancel(id: i64) -> Next {
    Box::new(move |call| {
        let job = Job::Ota(Box::new(OtaJob::Cancel { id, at: now().unix_ms }));
        submit(call, job, move |call, outcome| match ota_outcome(outcome) {
            Ok(OtaOutcome::Cancelled(task)) => call.success(200, &task),
            // Asked for again.
            Ok(OtaOutcome::Ended(task)) if task.reason.as_deref() == Some("cancelled") => {
                call.success(200, &task);
            }
            Ok(OtaOutcome::Ended(task)) => {
                call.error(&task_state(format!("update {id} is {}", task.state.as_str()), &task));
            }
            Ok(OtaOutcome::NoTask) => call.error(&no_task(id)),
            Ok(other) => call.error(&not_done(&Outcome::Ota(Box::new(other)))),
            Err(outcome) => call.error(&not_done(&outcome)),
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_types_are_read_as_the_vendor_writes_them() {
        assert_eq!(version("2.05").ok(), Some(205));
        assert_eq!(version("V12.34").ok(), Some(1234));
        assert_eq!(version("655.35").ok(), Some(65_535));
        for text in ["", "2", "2.5", "2.055", "655.36", "-1.00", "+1.00", "x.00", "2.0x", "VV2.05", "2.+5"] {
            assert!(version(text).is_err(), "{text}");
        }
        assert_eq!((device_type("41").ok(), device_type("0x29").ok()), (Some(41), Some(41)));
        for text in ["", "256", "0x100", "29h", "-1"] {
            assert!(device_type(text).is_err(), "{text}");
        }
    }

    #[test]
    fn firmware_is_named_by_row_or_hash() {
        assert_eq!(firmware_key(&json!(7)).ok(), Some(FirmwareKey::Id(7)));
        assert_eq!(firmware_key(&json!("0f".repeat(32))).ok(), Some(FirmwareKey::Sha256([0x0f; 32])));
        for value in [json!("7"), json!(1.5), json!(true), json!("0f")] {
            assert!(firmware_key(&value).is_err(), "{value}");
        }
    }
}
