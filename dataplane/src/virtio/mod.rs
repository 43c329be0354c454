//! Virtio devices: rings in guest memory, and the vhost-user protocol that hands them over.
