/** What programs need of the protocol that have no use for its schemas, and no time to load them. */

export const MiB = 1024 * 1024;

/** The part number that stands for the whole object, sent or fetched by one request. */
export const WHOLE_OBJECT = 0;
