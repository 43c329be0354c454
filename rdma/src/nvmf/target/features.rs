//! Set Features and Get Features (Base 5.27, 5.15). Nothing is saved over a reset, and the current
//! values alone can be asked for: Identify says so (ONCS bit 4).

use super::subsystem::{KEPT_FEATURES, MAX_IO_QUEUES, Member};
use super::{Answer, Subsystem};
use crate::nvmf::capsule::{Sqe, StatusCode, feature};

/// Error Recovery, dword 11: the time limit; the bit above it asks for errors on deallocated
/// blocks, which are not supported.
const ERROR_RECOVERY_MASK: u32 = 0xffff;
/// Save the value (dword 10).
const SAVE: u32 = 1 << 31;

pub(super) fn set(sqe: &Sqe, member: Member, subsystem: &mut Subsystem) -> Answer {
    let controller = subsystem.controller(member).ok_or(StatusCode::COMMAND_SEQUENCE)?;
    let (id, value) = (sqe.cdw(10) as u8, sqe.cdw(11));
    if !is_known(id, controller.is_discovery) {
        return Err(StatusCode::INVALID_FIELD);
    }
    if sqe.cdw(10) & SAVE != 0 {
        return Err(StatusCode::FEATURE_NOT_SAVEABLE);
    }
    match id {
        feature::QUEUES => {
            // 0-based counts of submission (low half) and completion queues; ffffh is not one.
            let asked = (value as u16).min((value >> 16) as u16);
            if value as u16 == u16::MAX || (value >> 16) as u16 == u16::MAX {
                return Err(StatusCode::INVALID_FIELD);
            }
            // Once granted it stays: the host has its queues (Base 5.27.1.5).
            if controller.queues != 0 {
                return Err(StatusCode::COMMAND_SEQUENCE);
            }
            controller.granted = asked.saturating_add(1).min(MAX_IO_QUEUES);
            Ok(queues(controller.granted))
        }
        feature::KEEP_ALIVE => {
            controller.keep_alive_ms = value;
            Ok(0)
        }
        feature::WRITE_CACHE if value & 1 == 1 => Ok(0),
        feature::WRITE_CACHE => Err(StatusCode::FEATURE_FIXED),
        // One power state, number 0.
        feature::POWER if value & 0x1f == 0 => Ok(0),
        feature::ERROR_RECOVERY if value & !ERROR_RECOVERY_MASK != 0 => {
            Err(StatusCode::INVALID_FIELD)
        }
        // On fabrics Connect says it (Base 5.27.1.25).
        feature::HOST_ID => Err(StatusCode::COMMAND_SEQUENCE),
        // No event is ever sent: any choice of events is kept, like the rest.
        _ => {
            let place = KEPT_FEATURES.iter().position(|kept| *kept == id);
            controller.kept[place.ok_or(StatusCode::INVALID_FIELD)?] = value;
            Ok(0)
        }
    }
}

pub(super) fn get(sqe: &Sqe, member: Member, subsystem: &mut Subsystem) -> Answer {
    let has_cache = !subsystem.namespace.read_only;
    let controller = subsystem.controller(member).ok_or(StatusCode::COMMAND_SEQUENCE)?;
    let id = sqe.cdw(10) as u8;
    let is_current = sqe.cdw(10) >> 8 & 7 == 0;
    if !is_known(id, controller.is_discovery) || !is_current {
        return Err(StatusCode::INVALID_FIELD);
    }
    match id {
        feature::QUEUES => Ok(queues(controller.granted.max(1))),
        feature::KEEP_ALIVE => Ok(u64::from(controller.keep_alive_ms)),
        feature::WRITE_CACHE => Ok(u64::from(has_cache)),
        feature::POWER => Ok(0),
        _ => {
            let place = KEPT_FEATURES.iter().position(|kept| *kept == id);
            Ok(u64::from(controller.kept[place.ok_or(StatusCode::INVALID_FIELD)?]))
        }
    }
}

/// Discovery has two features (Base 5.27.1, figure "Feature Identifiers").
fn is_known(id: u8, is_discovery: bool) -> bool {
    match id {
        feature::ASYNC_EVENTS | feature::KEEP_ALIVE => true,
        feature::QUEUES | feature::WRITE_CACHE | feature::POWER | feature::HOST_ID => !is_discovery,
        _ => !is_discovery && KEPT_FEATURES.contains(&id),
    }
}

/// Both counts of a Number of Queues answer, 0-based.
fn queues(granted: u16) -> u64 {
    let count = u64::from(granted - 1);
    count | count << 16
}
