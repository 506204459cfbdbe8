-- Offset and digest of the last record that was taken: another one there tells of another topic. NULL: nobody knows it.
ALTER TABLE command_offsets ADD COLUMN last_offset INTEGER;
ALTER TABLE command_offsets ADD COLUMN last_digest BLOB;
