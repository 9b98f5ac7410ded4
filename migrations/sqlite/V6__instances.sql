-- Several instances over one store: which of them has a device. NULL: nobody, or there is but one instance.
ALTER TABLE devices ADD COLUMN owner TEXT;
