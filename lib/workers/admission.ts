// When a group of a scheduler begins.

/**
 * - `reserve`: a group begins once all pages of its budget are free, and finds them whenever it wants them
 * - `park`: a group begins at once. Where the pages that it takes next could leave no order in which all groups can
 *   finish, it is parked: it keeps what it has and is in no step until others have given pages back
 */
export type Admission = 'reserve' | 'park'
